/** Pages whose runs need a kernel with ublk. */
export const ublkPages = ['docs/serve-ublk.md', 'docs/ublk.md'];
