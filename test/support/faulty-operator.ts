/**
 * The operator, with a hole in it: ends itself with SIGKILL at a chosen point, once. FAULT_POINT is beforeBroadcast or
 * afterBroadcast, FAULT_INTENT the beginning of the intent's name, FAULT_DIR where it remembers that it happened.
 */
import { existsSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import type { OutboxEntry } from '../../operator/adapters/chain/outbox.ts';
import { runOperator } from '../../operator/cmd/run-operator.ts';

const { FAULT_DIR: dir = '', FAULT_POINT: chosen = '', FAULT_INTENT: intent = '' } = process.env;

const at = (point: string) => (entry: OutboxEntry) => {
  const marker = join(dir, `killed-${point}`);
  if (point !== chosen || !entry.key.startsWith(intent) || existsSync(marker)) return;
  writeFileSync(marker, entry.hash);
  process.kill(process.pid, 'SIGKILL');
};

await runOperator(process.argv.slice(2), process.env, {
  outbox: { beforeBroadcast: at('beforeBroadcast'), afterBroadcast: at('afterBroadcast') },
});
