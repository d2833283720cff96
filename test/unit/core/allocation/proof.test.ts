/** What is made of a record that the gateway's account wrote, whoever had that account. */
import { describe, expect, test } from 'vitest';
import type { PromisedNode } from '../../../../operator/api/gateway.ts';
import type { Quote } from '../../../../operator/api/messages.ts';
import { asDecided, prove } from '../../../../operator/core/allocation/proof.ts';
import { roomOfPromise } from '../../../../operator/core/allocation/quote.ts';
import type { LeaseRecord } from '../../../../operator/core/allocation/record.ts';
import * as builders from '../../../support/builders.ts';

const now = builders.t0 + 10;
const escrow = builders.escrow();
const promised = {
  offerName: 'o',
  model: 'RTX4090',
  gpus: escrow.gpus,
  resources: { cpu: '8', memory: '32Gi', ephemeralStorage: '100Gi' },
} as unknown as PromisedNode;
const quote = {
  networkId: builders.networkId,
  provider: escrow.provider,
  payee: escrow.payee,
  consumer: escrow.consumer,
  token: escrow.token,
  leaseRef: builders.leaseRef,
  pricePerGpuHour: escrow.pricePerGpuHour,
  gpus: escrow.gpus,
  maxSeconds: escrow.maxSeconds,
  startTimeoutSeconds: escrow.endsAt - escrow.openedAt - escrow.maxSeconds,
  specHash: builders.promiseHash,
  expiresAt: now + 100,
} as unknown as Quote;
const hashes = {
  quote: escrow.quoteHash,
  node: builders.promiseHash,
  leaseId: escrow.leaseId,
  provider: escrow.provider,
};
const record = {
  leaseId: escrow.leaseId,
  signer: escrow.signer,
  openedAt: escrow.openedAt,
  endsAt: escrow.endsAt,
  node: promised,
  room: roomOfPromise(promised, 16),
} as unknown as LeaseRecord;

test('is believed when the escrow bears it out', () => {
  expect(prove(record, quote, hashes, escrow, now)).toEqual({ proven: true });
});

test('waits while no escrow is seen', () => {
  expect(prove(record, quote, hashes, undefined, now)).toEqual({ proven: false, wait: true });
});

const other = `0x${'77'.repeat(20)}` as const;
const lies: [string, Partial<LeaseRecord>, Partial<typeof hashes>, Partial<typeof escrow>, RegExp][] = [
  ['another quote than was escrowed', {}, { quote: builders.promiseHash }, {}, /quoteHash/],
  ['another node than was promised', {}, { node: builders.quoteHash }, {}, /node/],
  ["another lease than the quote's", { leaseId: builders.quoteHash }, {}, {}, /leaseId/],
  ['a quote of another provider', {}, { provider: other }, {}, /provider/],
  ['a session key that the escrow does not name', { signer: other }, {}, {}, /signer/],
  ['a longer term', { endsAt: escrow.endsAt + 1 }, {}, {}, /endsAt/],
  ['more memory', { room: { ...record.room, memoryBytes: record.room.memoryBytes * 2 } }, {}, {}, /memoryBytes/],
  ['more GPUs', { room: { ...record.room, gpus: record.room.gpus + 1 } }, {}, {}, /gpus/],
  ['pods without end', { room: { ...record.room, pods: 1_000_000 } }, {}, {}, /pods/],
  ['an escrow that is closed', {}, {}, { closed: true, closeReason: 'Finalized' as never }, /closed/],
  ['an escrow that closes', {}, {}, { closingAt: now }, /close/],
];
describe('is not believed when it tells of', () => {
  test.each(lies)('%s', (_, change, hash, chain, what) => {
    const proof = prove({ ...record, ...change }, quote, { ...hashes, ...hash }, { ...escrow, ...chain }, now);
    expect(proof).toMatchObject({ proven: false, wait: false });
    expect('differs' in proof && proof.differs.join()).toMatch(what);
  });
});

describe("decides what is the provider's to decide", () => {
  const storage = { className: 'fast', bytes: 100 };
  const asked = { ...record, tenantProfile: 'trusted' as const, storage: { className: 'other', bytes: 1000 } };
  test('trust and storage are what its own flags say, and no more than was asked for', () => {
    expect(asDecided(asked, { trusted: false })).not.toHaveProperty('tenantProfile');
    expect(asDecided(asked, { trusted: false })).not.toHaveProperty('storage');
    expect(asDecided(asked, { trusted: true, storage })).toMatchObject({ tenantProfile: 'trusted', storage });
    expect(
      asDecided({ ...asked, storage: { className: 'fast', bytes: 7 } }, { trusted: false, storage }),
    ).toMatchObject({
      storage: { className: 'fast', bytes: 7 },
    });
    expect(asDecided(record, { trusted: true, storage })).not.toHaveProperty('tenantProfile');
  });
});
