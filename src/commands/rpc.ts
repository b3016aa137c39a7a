import { askRpc } from '../observe/rpc_client.ts';
import { rpcText } from '../observe/rpc_text.ts';
import type { Arguments } from './arguments.ts';
import { writeOutput } from './output.ts';
import { secondsOf } from './seconds.ts';

const DEFAULT_TIMEOUT_S = 10;

/** `ubiblk rpc`: asks a running server one thing (docs/rpc.md). */
export async function run(args: Arguments): Promise<number> {
  const timeoutMs = secondsOf(args, 'timeout', DEFAULT_TIMEOUT_S) * 1000;
  const [socket, command] = args.operands;
  const answer = await askRpc(socket, command, timeoutMs);
  writeOutput(args.has('json') ? `${JSON.stringify(answer)}\n` : rpcText(answer));
  return 0;
}
