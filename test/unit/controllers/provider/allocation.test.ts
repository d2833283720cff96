/** What is read, written and ended for one allocation when it is looked at. */
import { expect, test } from 'vitest';
import {
  type AllocationOptions,
  createAllocationReconciler,
  keyOfLease,
} from '../../../../operator/controllers/provider/allocation.ts';
import { zeroAddress } from '../../../../operator/core/allocation/quote.ts';
import { type LeaseRecord, recordName, recordText } from '../../../../operator/core/allocation/record.ts';
import { silentLog } from '../../../../operator/engine/log.ts';

const leaseId = `0x${'a1'.repeat(32)}` as const;
const namespace = 'gpulease-system';
const start = 10_000;

const record = (changes: Partial<LeaseRecord> = {}): LeaseRecord => ({
  version: 1,
  leaseId,
  chainId: 1,
  escrow: zeroAddress,
  quote: { maxSeconds: 3600, graceSeconds: 60, expiresAt: start - 100, token: zeroAddress } as LeaseRecord['quote'],
  quoteSignature: '0x',
  node: {} as LeaseRecord['node'],
  signer: zeroAddress,
  openedAt: start - 100,
  endsAt: start + 3600,
  room: { gpus: 1, cpuMillis: 1, memoryBytes: 1, ephemeralBytes: 1, pods: 1 },
  nodeName: 'n',
  state: 'Serving',
  createdAt: '',
  paidSeconds: 3600,
  meter: { unpaidSeconds: 0, creditedSeconds: 0, countedUntil: start },
  ...changes,
});
const voucher = (servedSeconds: number) => ({ servedSeconds, last: false, signature: '0x' as const });

function world(watched: LeaseRecord, stored = watched) {
  const did: string[] = [];
  const it = {
    did,
    watched,
    stored,
    nowSeconds: start + 1,
    left: undefined as string | undefined,
    nodeReady: true,
    afterRead: (): void => undefined,
    look: async () => ({}) as { requeueAfterSeconds?: number },
  };
  const options = {
    namespace,
    watched: {
      get: () => ({
        metadata: { name: recordName(leaseId) },
        data: { record: Buffer.from(recordText(it.watched)).toString('base64') },
      }),
    },
    records: {
      async get() {
        did.push('read');
        const read = it.stored;
        it.afterRead();
        return read;
      },
      async update(_: string, change: (latest: LeaseRecord) => LeaseRecord) {
        const after = change(it.stored);
        if (after !== it.stored) did.push(`write ${after.state}`);
        it.stored = after;
        return after;
      },
    },
    tenants: { tearDown: async () => did.push('tear down') > 0 },
    ledgers: {
      free: async () => void did.push('free'),
      note: async (_node: string, _lease: string, why: string) => void did.push(`note ${why}`),
    },
    residue: { left: async () => it.left },
    stock: { node: () => ({ ready: it.nodeReady }) },
    chain: { seen: () => ({ known: false }) },
    counters: { count: () => undefined },
    ended: () => undefined,
    prove: async () => ({ proven: true }),
    decided: (one: LeaseRecord) => one,
    vouched: () => true,
    tickSeconds: 3,
    retentionSeconds: 60,
    now: () => new Date(it.nowSeconds * 1000),
    log: silentLog,
  };
  const reconcile = createAllocationReconciler(options as unknown as AllocationOptions);
  it.look = () => reconcile(keyOfLease(namespace, leaseId), new AbortController().signal);
  return it;
}

test('one that goes on as it is costs no question', async () => {
  const w = world(record());
  for (let i = 0; i < 10; i += 1) {
    expect(await w.look()).toEqual({ requeueAfterSeconds: 3 });
    w.nowSeconds += 3;
  }
  expect(w.did).toEqual([]);
});

test('its meter is stored once a minute', async () => {
  const w = world(record());
  w.nowSeconds = start + 61;
  await w.look();
  expect(w.did).toEqual(['read', 'write Serving']);
});

test('one that is not paid is ended, decided on what is stored', async () => {
  const overdue = record({ meter: { unpaidSeconds: 60, creditedSeconds: 0, countedUntil: start } });
  const w = world(overdue);
  await w.look();
  expect(w.did).toEqual(['read', 'write Suspended']);
  w.watched = w.stored;
  await w.look();
  expect(w.did.slice(2, 4)).toEqual(['read', 'tear down']);
});

test('one whose voucher was stored in the last moment is not ended', async () => {
  const overdue = record({ meter: { unpaidSeconds: 60, creditedSeconds: 0, countedUntil: start } });
  const w = world(overdue, record({ ...overdue, voucher: voucher(60) }));
  await w.look();
  expect(w.did).toEqual(['read']);
  expect(w.stored.state).toBe('Serving');
});

test('one whose voucher is stored between the reading and the writing is not ended either', async () => {
  const overdue = record({ meter: { unpaidSeconds: 60, creditedSeconds: 0, countedUntil: start } });
  const w = world(overdue);
  w.afterRead = () => {
    w.stored = { ...overdue, voucher: voucher(60) };
  };
  const { requeueAfterSeconds } = await w.look();
  expect(requeueAfterSeconds).toBeLessThan(1);
  expect(w.did).not.toContain('tear down');
});

test('what was watched and is older than what was read takes no credit back', async () => {
  const w = world(record(), record({ voucher: voucher(40) }));
  w.nowSeconds = start + 61; // a minute: it is read
  await w.look();
  const before = w.did.length;
  w.nowSeconds += 3;
  await w.look();
  // Still the old one in the watch: it is read again.
  expect(w.did.slice(before)).toContain('read');
  w.watched = record({
    voucher: voucher(40),
    meter: { unpaidSeconds: 0, creditedSeconds: 40, countedUntil: start + 61 },
  });
  w.nowSeconds += 3;
  const after = w.did.length;
  await w.look();
  expect(w.did.length).toBe(after);
});

test('one that has ended may be settled at once; its room is given back when nothing of its tenant is left', async () => {
  const w = world(record({ state: 'Ending', reason: 'Released', endingSince: '1970-01-01T02:46:41Z' }));
  w.left = 'namespace gl-a1 is being deleted';
  await w.look();
  expect(w.stored).toMatchObject({ state: 'Ending', tornDown: true });
  expect(w.stored).not.toHaveProperty('unseen');
  await w.look();
  expect(w.stored.state).toBe('Ended');
  await w.look();
  await w.look();
  expect(w.did).not.toContain('free');
  expect(w.did.filter((one) => one.startsWith('note'))).toEqual(Array(2).fill('note namespace gl-a1 is being deleted'));
  w.left = undefined;
  await w.look();
  expect(w.did).toContain('free');
  expect(w.stored.clean).toBe(true);
  const before = w.did.length;
  await w.look();
  expect(w.did.slice(before)).toEqual(['read']);
});

test('one whose pods were taken away while their node was silent says so, for whoever looks what is left', async () => {
  const w = world(record({ state: 'Ending', reason: 'Released' }));
  w.nodeReady = false;
  await w.look();
  expect(w.stored).toMatchObject({ tornDown: true, unseen: true });
});
