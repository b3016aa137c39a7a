/** Bugs in what queues do with requests. */
import {
  type BlockRequest,
  DISCARD,
  FLUSH,
  READ,
  WRITE_ZEROES,
} from '../../../../src/device/request.ts';
import { LazyLayer } from '../../../../src/stripe/lazy_layer.ts';
import { Want } from '../../../../src/stripe/shared_state.ts';
import { type Bug, replace } from '../bug.ts';
import { insideLayer, type LayerInside } from './insides.ts';

function inImage({ image, options }: LayerInside, { op, offset, length }: BlockRequest): boolean {
  return image !== null && op === READ && offset + length <= options.imageBytes;
}

export const queueBugs: Bug[] = [
  {
    name: 'a request waits for stripes that have become local since',
    layer(layer) {
      const inside = insideLayer(layer);
      replace(inside, 'park', (park) => (request, first, last) => {
        const { base } = inside;
        inside.base = { inFlight: 0, submit: () => {} };
        park(request, first, last);
        inside.base = base;
      });
    },
  },
  {
    name: 'a read across stripes is read from the image',
    layer(layer) {
      const inside = insideLayer(layer);
      replace(inside, 'park', (park) => (request, first, last) => {
        if (inImage(inside, request)) inside.image?.submit(request);
        else park(request, first, last);
      });
    },
  },
  {
    name: 'a local stripe is read from the image',
    layer(layer) {
      const inside = insideLayer(layer);
      replace(inside, 'submit', (submit) => (request) => {
        const { stripeBytes } = inside.options;
        const whole = request.offset % stripeBytes === 0 && request.length === stripeBytes;
        if (whole && inImage(inside, request)) inside.image?.submit(request);
        else submit(request);
      });
    },
  },
  {
    name: 'a read goes beyond the end of the image',
    layer(layer) {
      const inside = insideLayer(layer);
      inside.options = { ...inside.options, imageBytes: Number.MAX_SAFE_INTEGER };
    },
  },
  {
    name: 'a request for many stripes is done with the first of them',
    layer(layer) {
      const { large } = insideLayer(layer);
      replace(large, 'goOn', (goOn) => (part, whole) => {
        if (part.length === 0) {
          goOn(part, whole);
          return;
        }
        large.release(part);
        whole.result = 0;
        whole.owner.completed(whole);
      });
    },
  },
  {
    name: 'the image is let go of while it is read',
    devices({ image }) {
      if (image) Object.defineProperty(image, 'inFlight', { get: () => 0, set: () => {} });
    },
  },
  {
    name: 'a write does not wait until it is recorded',
    layer(layer) {
      replace(insideLayer(layer), 'isReady', (isReady) => (stripe) => isReady(stripe, true));
    },
  },
  {
    name: 'a write of a part of a stripe claims it',
    layer(layer) {
      const inside = insideLayer(layer);
      replace(inside, 'wantOf', (wantOf) => (request, stripe) => {
        const want = wantOf(request, stripe);
        return want === Want.WRITTEN && !inside.isReady(stripe, true) ? Want.CLAIM : want;
      });
    },
  },
  {
    name: 'a flush is answered at once',
    devices({ base }) {
      replace(base, 'submit', (submit) => (request) => {
        if (request.op !== FLUSH) {
          submit(request);
          return;
        }
        request.result = 0;
        request.owner.completed(request);
      });
    },
  },
  {
    name: 'a durable write is written like any other',
    devices({ base }) {
      replace(base, 'submit', (submit) => (request) => {
        request.durable = false;
        submit(request);
      });
    },
  },
  {
    name: 'the discard of a claimed stripe leaves what the disk had',
    devices({ base }) {
      replace(base, 'submit', (submit) => (request) => {
        const filling = request.owner instanceof LazyLayer;
        if (filling && request.op === WRITE_ZEROES && request.unmap) request.op = DISCARD;
        submit(request);
      });
    },
  },
];
