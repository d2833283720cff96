/** What no lease stands behind at the provider: what is ended, and what is left alone because nobody knows. */
import { describe, expect, it } from 'vitest';
import { ledgerName } from '../../../../operator/controllers/provider/ledgers.ts';
import { type SweepOptions, sweep } from '../../../../operator/controllers/provider/sweep.ts';
import type { Tenant } from '../../../../operator/controllers/provider/tenants.ts';
import { ledgerText } from '../../../../operator/core/allocation/ledger.ts';
import { silentLog } from '../../../../operator/engine/log.ts';

const leaseId = `0x${'a1'.repeat(32)}` as const;
const paid = { chainId: 42161, escrow: `0x${'e'.repeat(40)}`, leaseId };
const now = new Date('2026-01-01T01:00:00Z');
const old = new Date('2026-01-01T00:00:00Z');
const room = {
  gpus: 1,
  cpuMillis: 1000,
  memoryBytes: 1,
  ephemeralBytes: 1,
  pods: 1,
  consumer: `0x${'c'.repeat(40)}`,
  offerName: 'x',
};
const namespace = 'gl-a1a1a1a1a1a1a1a1a1a1';
const tenant = (change: Partial<Tenant> = {}): Tenant => ({ namespace, escrow: paid, createdAt: old, ...change });

interface World {
  readonly tenants?: readonly Tenant[];
  readonly record?: object;
  /** What the chain says of the escrow; `silent` when nobody answers; `foreign` when it is no chain of ours. */
  readonly escrow?: { closed: boolean } | 'silent' | 'foreign';
  /** What it said at the safe head, where that is something else. */
  readonly safe?: { closed: boolean } | 'none';
  readonly safeBlockTime?: Date;
  readonly ledgers?: readonly { node: string; since: Date }[];
  /** Where the tenant is, seen from the node of the ledger. Default: gone, where there are no tenants. */
  readonly place?: 'here' | 'elsewhere' | 'gone';
  /** What of it is left on that node. */
  readonly left?: string;
}

async function swept(world: World): Promise<string[]> {
  const did: string[] = [];
  const options = {
    stock: {
      ledgers: {
        list: () =>
          (world.ledgers ?? []).map(({ node, since }) => ({
            metadata: { name: ledgerName(node) },
            data: {
              'ledger.json': ledgerText({ node, entries: { [leaseId]: { ...room, since: since.toISOString() } } }),
            },
          })),
      },
    },
    records: { get: async () => world.record },
    ledgers: { free: async (node: string) => void did.push(`free ${node}`) },
    tenants: {
      list: async () => world.tenants ?? [],
      place: async () => world.place ?? ((world.tenants ?? []).length > 0 ? 'here' : 'gone'),
      tearDown: async (id: string) => did.push(`tear down ${id.slice(0, 6)}`) > 0,
      removeNamespace: async (name: string) => void did.push(`remove ${name}`),
    },
    residue: {
      left: async ({ nodeName }: { nodeName: string }) =>
        nodeName === 'gpu-1' ? world.left : 'another node was asked',
    },
    chains: {
      chain: () =>
        world.escrow === 'foreign'
          ? undefined
          : {
              reads: async () => {
                if (world.escrow === 'silent') throw new Error('no answer');
                const safe = world.safe === 'none' ? undefined : (world.safe ?? world.escrow);
                const safeBlockTime = (world.safeBlockTime ?? now).getTime() / 1000;
                return [{ latest: world.escrow, safe, safeBlockTime }];
              },
            },
    },
    now: () => now,
    log: silentLog,
    counters: { count: (name: string, labels: { kind: string }) => void did.push(`count ${labels.kind} ${name}`) },
  } as unknown as SweepOptions;
  await sweep(options, new AbortController().signal).catch((error: Error) => did.push(`failed: ${error.message}`));
  return did.map((line) => line.replace(' gpulease_gateway_orphans_total', ''));
}

describe('a tenant', () => {
  const table: [string, World, string[]][] = [
    ['with a record that serves stays', { tenants: [tenant()], record: { state: 'Serving' } }, []],
    [
      'whose record says that it is torn down is removed',
      { tenants: [tenant()], record: { state: 'Ended', tornDown: true } },
      [`remove ${namespace}`],
    ],
    ['whose record is still ending stays', { tenants: [tenant()], record: { state: 'Ended' } }, []],
    [
      'without a record and with money stays: its consumer may come back for it',
      { tenants: [tenant()], escrow: { closed: false } },
      ['count tenant'],
    ],
    [
      'without a record, whose escrow is closed, is taken down',
      { tenants: [tenant()], escrow: { closed: true } },
      ['count tenant', 'tear down 0xa1a1'],
    ],
    [
      'without a record stays while the close of its escrow may be taken back',
      { tenants: [tenant()], escrow: { closed: true }, safe: { closed: false } },
      ['count tenant'],
    ],
    [
      'without a record stays while only the newest block has its escrow, and it is closed there',
      { tenants: [tenant()], escrow: { closed: true }, safe: 'none' },
      ['count tenant'],
    ],
    [
      'without a record stays when a node that is behind knows of no escrow',
      { tenants: [tenant()], escrow: undefined, safe: { closed: false } },
      ['count tenant'],
    ],
    [
      'without a record and without an escrow is taken down',
      { tenants: [tenant()], safeBlockTime: new Date(old.getTime() + 3_601_000) },
      ['count tenant', 'tear down 0xa1a1'],
    ],
    [
      'without a record, whose escrow may still be opened again, stays',
      { tenants: [tenant()], safeBlockTime: new Date(old.getTime() + 3_600_000) },
      ['count tenant'],
    ],
    [
      'stays while the chain is silent',
      { tenants: [tenant()], escrow: 'silent' },
      ['count tenant', 'failed: no answer'],
    ],
    ['that is paid on a chain of nobody here stays', { tenants: [tenant()], escrow: 'foreign' }, ['count tenant']],
    ['that does not tell where its money is stays', { tenants: [tenant({ escrow: undefined })] }, ['count tenant']],
    ['that is just being made stays', { tenants: [tenant({ createdAt: new Date(now.getTime() - 59_000) })] }, []],
  ];
  it.each(table)('%s', async (_, world, did) => {
    expect(await swept(world)).toEqual(did);
  });
});

describe('a reservation', () => {
  const onNode = (since = old) => [{ node: 'gpu-1', since }];
  const table: [string, World, string[]][] = [
    ['of a lease that is served stays', { ledgers: onNode(), record: { nodeName: 'gpu-1', state: 'Serving' } }, []],
    ['without a record is given back', { ledgers: onNode() }, ['count reservation', 'free gpu-1']],
    [
      'without a record, whose tenant may still run pods, stays',
      { ledgers: onNode(), tenants: [tenant()], escrow: { closed: false } },
      ['count tenant'],
    ],
    [
      'of a lease that is torn down is given back',
      { ledgers: onNode(), record: { nodeName: 'gpu-1', state: 'Ended', tornDown: true, clean: true } },
      ['count reservation', 'free gpu-1'],
    ],
    [
      'of a lease that is served on another node is given back',
      { ledgers: onNode(), record: { nodeName: 'gpu-2', state: 'Serving' }, place: 'elsewhere' },
      ['count reservation', 'free gpu-1'],
    ],
    [
      'stays while its tenant is there, though its record says that nothing of it is left',
      { ledgers: onNode(), record: { nodeName: 'gpu-1', state: 'Ended', tornDown: true, clean: true }, place: 'here' },
      [],
    ],
    [
      'stays while its tenant is there, though its record says that it is on another node',
      { ledgers: onNode(), record: { nodeName: 'gpu-2', state: 'Serving' }, place: 'here' },
      [],
    ],
    [
      'stays while the kubelet knows its pods, though its record says that nothing of it is left',
      { ledgers: onNode(), record: { nodeName: 'gpu-2', state: 'Ended', clean: true }, left: 'the kubelet knows two' },
      [],
    ],
    [
      'without a record stays while something of its tenant is left on the node',
      { ledgers: onNode(), left: 'volumes are being deleted' },
      [],
    ],
    ['that is just being made stays', { ledgers: onNode(new Date(now.getTime() - 59_000)) }, []],
  ];
  it.each(table)('%s', async (_, world, did) => {
    expect(await swept(world)).toEqual(did);
  });
});
