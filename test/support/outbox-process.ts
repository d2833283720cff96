/**
 * An outbox in a process of its own, which can be killed: it submits an intent and looks after it until it is mined, and sends
 * itself SIGKILL at the point that is named. Prints the entry when it was not killed. Argument: one `Instructions` as JSON.
 *
 * A point is the boundary of a step, before or after it: `simulate`, `estimate`, `nonce`, `sign`, `store`, `broadcast`, `receipt`
 * (one that is there). With a count, as steps come again: `store:after#2`. `any#7` is the seventh boundary, whichever it is.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import { type ChainKey, keyFromHex } from '../../operator/adapters/chain/key.ts';
import {
  createOutbox,
  type Intent,
  type OutboxPolicy,
  type OutboxRecord,
} from '../../operator/adapters/chain/outbox.ts';
import { connectRpc, type Rpc } from '../../operator/adapters/chain/rpc.ts';
import type { Store } from '../../operator/adapters/chain/store.ts';
import { fileStore } from './file-store.ts';

export interface Instructions {
  readonly urls: readonly string[];
  readonly chainId: number;
  readonly privateKey: string;
  readonly file: string;
  readonly intent: Intent;
  readonly killAt?: string;
  readonly policy?: Partial<Pick<OutboxPolicy, 'bumpAfterSeconds'>>;
  /** After submitting, take it back. */
  readonly cancel?: boolean;
  /** Do not wait until it is mined. */
  readonly submitOnly?: boolean;
}

const { urls, chainId, privateKey, file, intent, killAt, policy, cancel, submitOnly } = JSON.parse(
  process.argv[2]!,
) as Instructions;

const passed = new Map<string, number>();
function pass(point: string): void {
  for (const name of [point, 'any']) {
    const count = (passed.get(name) ?? 0) + 1;
    passed.set(name, count);
    // Delivered before the call returns: no further step is taken.
    if (killAt === `${name}#${count}` || (count === 1 && killAt === name)) process.kill(process.pid, 'SIGKILL');
  }
}
async function around<T>(
  step: string | undefined,
  work: () => Promise<T>,
  happened: (result: T) => boolean = () => true,
) {
  if (step) pass(`${step}:before`);
  const result = await work();
  if (step && happened(result)) pass(`${step}:after`);
  return result;
}

const steps: Record<string, string> = {
  eth_call: 'simulate',
  eth_estimateGas: 'estimate',
  eth_sendRawTransaction: 'broadcast',
  eth_getTransactionReceipt: 'receipt',
};

function watchedRpc(rpc: Rpc): Rpc {
  const call: Rpc['call'] = (method, params, signal) => {
    const step = method === 'eth_getTransactionCount' && params[1] === 'pending' ? 'nonce' : steps[method];
    return around(
      step,
      () => rpc.call(method, params, signal),
      (result) => result !== null,
    );
  };
  return {
    ...rpc,
    call,
    contractCall: (request, block, signal) => around('simulate', () => rpc.contractCall(request, block, signal)),
  };
}
const watchedKey = (key: ChainKey): ChainKey => ({
  ...key,
  signTransaction: (transaction) => around('sign', () => key.signTransaction(transaction)),
});
const watchedStore = <T>(store: Store<T>): Store<T> => ({
  ...store,
  save: (value, version, signal) => around('store', () => store.save(value, version, signal)),
});

const outbox = createOutbox({
  rpc: watchedRpc(await connectRpc({ urls, chainId })),
  key: watchedKey(keyFromHex(privateKey)),
  store: watchedStore(fileStore<OutboxRecord>(file)),
  now: () => new Date(),
  policy,
});
const result = await outbox.submit(intent);
if (cancel) await outbox.cancel(intent.key);
for (let turn = 0; !submitOnly && turn < 600; turn++) {
  await outbox.tick();
  const entry = await outbox.state(intent.key);
  if (!entry || entry.receipt || entry.state === 'lost') break;
  await sleep(100);
}
const shown = submitOnly ? result : { ...result, entry: await outbox.state(intent.key) };
process.stdout.write(JSON.stringify(shown, (_, value) => (typeof value === 'bigint' ? value.toString() : value)));
