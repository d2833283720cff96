/**
 * The operator, with holes in it. It does what it is told in FAULT_DIR, which it looks at whenever it passes a point:
 *
 *   at.json        { "point": "gateway.quote:after", "do": "kill" | "hold", "match"?: text that the arguments contain }
 *                  kill: ends itself with SIGKILL, once.  hold: stops there until `at.json` is gone
 *   reached        written when the point is reached: what it was about, as JSON
 *   clock-seconds  read at start: how far its clock is off
 *
 * Points are the lease controller's calls (`gateway.quote`, `records.save`, `money.open`, `nodes.start`, …), each `:before` and
 * `:after`, and the outbox's `beforeBroadcast` and `afterBroadcast`.
 */
import { existsSync, readFileSync, renameSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import type { OutboxEntry } from '../../operator/adapters/chain/outbox.ts';
import { runOperator } from '../../operator/cmd/run-operator.ts';
import type { Gateway } from '../../operator/controllers/consumer/ports.ts';
import type { LeaseWorld } from '../../operator/controllers/consumer/world.ts';

export interface FaultOrder {
  readonly point: string;
  readonly do: 'kill' | 'hold';
  readonly match?: string;
}

const dir = process.env.FAULT_DIR ?? '';
const orderFile = join(dir, 'at.json');
const reachedFile = join(dir, 'reached');

function order(): FaultOrder | undefined {
  try {
    return JSON.parse(readFileSync(orderFile, 'utf8')) as FaultOrder;
  } catch {
    return undefined; // none given, or just taken back
  }
}

async function pass(point: string, about: unknown): Promise<void> {
  const given = order();
  if (given?.point !== point) return;
  const text = JSON.stringify(about, (_, value) => (typeof value === 'bigint' ? String(value) : value)) ?? '';
  if (given.match !== undefined && !text.includes(given.match)) return;
  writeFileSync(`${reachedFile}.new`, text);
  renameSync(`${reachedFile}.new`, reachedFile);
  if (given.do === 'kill') {
    renameSync(orderFile, join(dir, 'at.done'));
    process.kill(process.pid, 'SIGKILL');
    await sleep(10_000); // the signal comes a moment later
  }
  while (order()?.point === point) await sleep(20);
}

/** The same object, with a point before and after each of its async methods. */
function passing<T extends object>(name: string, port: T): T {
  return new Proxy(port, {
    get(target, key) {
      const value: unknown = Reflect.get(target, key);
      if (typeof value !== 'function' || typeof key !== 'string') return value;
      return (...args: unknown[]) => {
        const about = args.filter((arg) => !(arg instanceof AbortSignal));
        if (!watched(`${name}.${key}`)) return value.apply(target, args);
        return (async () => {
          await pass(`${name}.${key}:before`, about);
          const result: unknown = await value.apply(target, args);
          await pass(`${name}.${key}:after`, about);
          return result;
        })();
      };
    },
  });
}

/** Only calls that are async may be made so. */
const watched = (call: string) =>
  /^(gateway\.(quote|allocate|vouch|release)|records\.(save|remove)|nodes\.(start|drain|stop)|money\.(approve|open|topUp|closeWithRelease|requestClose|finalize))$/.test(
    call,
  );

const world = (given: LeaseWorld): LeaseWorld => ({
  ...given,
  records: passing('records', given.records),
  money: passing('money', given.money),
  nodes: passing('nodes', given.nodes),
  gateways: { ...given.gateways, of: (provider) => passing<Gateway>('gateway', given.gateways.of(provider)) },
});

const clockFile = join(dir, 'clock-seconds');
const offMs = existsSync(clockFile) ? Number(readFileSync(clockFile, 'utf8')) * 1000 : 0;

const outbox = (point: string) => (entry: OutboxEntry) => pass(point, entry);

await runOperator(process.argv.slice(2), process.env, {
  outbox: { beforeBroadcast: outbox('beforeBroadcast'), afterBroadcast: outbox('afterBroadcast') },
  now: () => new Date(Date.now() + offMs),
  world,
});
