/**
 * An outbox in a process of its own, which can be killed: reads one JSON line of instructions, submits, and kills itself
 * with SIGKILL at the point that is named. Prints the entry when it was not.
 */

import { keyFromHex } from '../../operator/adapters/chain/key.ts';
import { createOutbox, type OutboxRecord } from '../../operator/adapters/chain/outbox.ts';
import { connectRpc } from '../../operator/adapters/chain/rpc.ts';
import { fileStore } from './file-store.ts';

const { url, chainId, privateKey, file, intent, killAt } = JSON.parse(process.argv[2]!);
const die = () => void process.kill(process.pid, 'SIGKILL');
const outbox = createOutbox({
  rpc: await connectRpc({ urls: [url], chainId }),
  key: keyFromHex(privateKey),
  store: fileStore<OutboxRecord>(file),
  now: () => new Date(),
  faults: {
    beforeBroadcast: killAt === 'beforeBroadcast' ? die : undefined,
    afterBroadcast: killAt === 'afterBroadcast' ? die : undefined,
  },
});
const result = await outbox.submit(intent);
process.stdout.write(JSON.stringify(result, (_, value) => (typeof value === 'bigint' ? value.toString() : value)));
