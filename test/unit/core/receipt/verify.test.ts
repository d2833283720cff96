/** A true receipt holds, and each thing that can be changed in one is noticed and named. Real signatures throughout. */
import { beforeAll, describe, expect, test } from 'vitest';
import { signRelease, signVoucher } from '../../../../operator/adapters/chain/messages.ts';
import { proofsOf, sealReceipt } from '../../../../operator/adapters/chain/receipt-proofs.ts';
import type { Hex32 } from '../../../../operator/api/messages.ts';
import { type Receipt, receipt as schema } from '../../../../operator/api/receipt.ts';
import {
  type ExampleLease,
  type ExamplePaper,
  exampleChain,
  exampleKeys,
  exampleLeases,
  exampleReceipt,
} from '../../../../operator/cmd/example-papers.ts';
import { type ChainWords, type FaultName, faultsOf, remarksOn } from '../../../../operator/core/receipt/verify.ts';

type Draft = { -readonly [Field in keyof Receipt]: Receipt[Field] } & Record<string, unknown>;
const lease: ExampleLease = {
  ...exampleLeases[0]!,
  name: 'tampered',
  gpus: 2,
  servedSeconds: 600,
  settledAt: [200, 400],
  referrerBps: 2500,
};
const someHash = `0x${'ab'.repeat(32)}`;
const someone = exampleKeys.stranger.address;

let paper: ExamplePaper;
beforeAll(async () => {
  paper = await exampleReceipt(lease);
});

const copy = (): Draft => structuredClone(paper.receipt);
const check = async (receipt: Draft | Receipt, ...rest: [object?, ChainWords?]) =>
  faultsOf(receipt, await proofsOf(receipt, receipt), ...rest);

test('a true receipt has no fault', async () => {
  expect(schema.parse(paper.receipt)).toEqual(paper.receipt);
  expect(await check(paper.receipt)).toEqual([]);
  expect(remarksOn(paper.receipt)).toEqual([]);
});

test('and still has none when it was printed and read again, in whatever order its fields stand', async () => {
  const turned = Object.fromEntries(Object.entries(paper.receipt).reverse()) as Receipt;
  const again = JSON.parse(JSON.stringify(turned, null, 7)) as Receipt;
  expect(await check(again)).toEqual([]);
});

test('a lease that nobody served, and one whose provider vanished, have true receipts that say so', async () => {
  const unserved = (await exampleReceipt({ ...lease, name: 'unserved', servedSeconds: 0, settledAt: [] })).receipt;
  expect(await check(unserved)).toEqual([]);
  expect(remarksOn(unserved)).toEqual(['nothing was billed']);
  const { receipt } = await exampleReceipt({ ...lease, name: 'vanished', vanishes: true });
  expect(await check(receipt)).toEqual([]);
  expect(receipt.settlement.servedSeconds).toBe(400);
  expect(remarksOn(receipt)).toEqual([
    "without the provider's release: sandbox gave no release; the consumer stopped the clock, and the escrow was finalized after the claim window.",
  ]);
});

type Tampering = readonly [string, (receipt: Draft) => void, FaultName, string];
/** What is changed, how, which fault is named first, and of which field. */
const tamperings: readonly Tampering[] = [
  [
    'a higher price',
    (r) => {
      r.quote.quote.pricePerGpuHour = '350000';
    },
    'QuoteSignature',
    'quote.signature',
  ],
  [
    'another payee',
    (r) => {
      r.quote.quote.payee = someone;
    },
    'QuoteSignature',
    'quote.signature',
  ],
  [
    'another chain',
    (r) => {
      r.quote.chainId = 1;
    },
    'QuoteSignature',
    'quote.signature',
  ],
  [
    'a signature that is none',
    (r) => {
      r.quote.signature = '0x1234';
    },
    'QuoteSignature',
    'quote.signature',
  ],
  [
    'more seconds in the voucher',
    (r) => {
      r.voucher.servedSeconds += 1;
    },
    'VoucherSignature',
    'voucher.signature',
  ],
  [
    'another session key',
    (r) => {
      r.settlement.signer = someone;
    },
    'VoucherSignature',
    'voucher.signature',
  ],
  [
    'fewer seconds in the release',
    (r) => {
      r.release!.servedSeconds -= 1;
    },
    'ReleaseSignature',
    'release.signature',
  ],
  [
    'another lease',
    (r) => {
      r.lease.uid = '00000000-0000-4000-8000-000000000000';
    },
    'LeaseRef',
    'quote.quote.leaseRef',
  ],
  [
    'another attempt',
    (r) => {
      r.lease.attempt = 2;
    },
    'LeaseRef',
    'quote.quote.leaseRef',
  ],
  [
    'a better node than was promised',
    (r) => {
      r.quote.node.model = 'H100-SXM';
    },
    'PromisedNode',
    'quote.node',
  ],
  [
    'the release taken away',
    (r) => {
      delete r.release;
    },
    'Release',
    'release',
  ],
  [
    'an escrow that is still open',
    (r) => {
      r.settlement.closeReason = 'Open';
    },
    'NotClosed',
    'settlement.closeReason',
  ],
  [
    'an end that does not follow from the quote',
    (r) => {
      r.settlement.endsAt += 3600;
    },
    'Times',
    'settlement.endsAt',
  ],
  [
    'billing that stopped before it began',
    (r) => {
      r.settlement.closingAt = r.settlement.openedAt - 1;
    },
    'Times',
    'settlement.closingAt',
  ],
  [
    'an opening after the quote had run out',
    (r) => {
      r.settlement.openedAt += 200;
      r.settlement.endsAt += 200;
    },
    'QuoteExpired',
    'settlement.openedAt',
  ],
  [
    'a deposit beyond the term',
    (r) => {
      r.settlement.deposit = '680001';
    },
    'Deposit',
    'settlement.deposit',
  ],
  [
    'more seconds than were signed for',
    (r) => {
      r.settlement.servedSeconds += 1;
    },
    'ServedBeyondVoucher',
    'settlement.servedSeconds',
  ],
  [
    'more seconds than passed',
    (r) => {
      r.settlement.closingAt -= 10;
    },
    'ServedBeyondClock',
    'settlement.servedSeconds',
  ],
  [
    'a fee above the cap',
    (r) => {
      r.settlement.feeBps = 501;
    },
    'FeeRate',
    'settlement.feeBps',
  ],
  [
    'one base unit more billed',
    (r) => {
      r.settlement.claimed = String(BigInt(r.settlement.claimed) + 1n);
    },
    'Claimed',
    'settlement.claimed',
  ],
  [
    'one base unit less fee',
    (r) => {
      r.settlement.fee = String(BigInt(r.settlement.fee) - 1n);
    },
    'Fee',
    'settlement.fee',
  ],
  [
    'one base unit more of it for the referrer',
    (r) => {
      r.settlement.referrerFee = String(BigInt(r.settlement.referrerFee) + 1n);
    },
    'ReferrerFee',
    'settlement.referrerFee',
  ],
  [
    'one base unit more for the provider',
    (r) => {
      r.settlement.paid = String(BigInt(r.settlement.paid) + 1n);
    },
    'Paid',
    'settlement.paid',
  ],
  [
    'one base unit less refunded',
    (r) => {
      r.settlement.refunded = String(BigInt(r.settlement.refunded) - 1n);
    },
    'Refunded',
    'settlement.refunded',
  ],
  [
    'a seal by somebody else',
    (r) => {
      r.seal.signer = someone;
    },
    'SealSigner',
    'seal.signer',
  ],
  [
    'another namespace',
    (r) => {
      r.lease.namespace = 'research';
    },
    'Seal',
    'seal.signature',
  ],
  [
    'another token symbol',
    (r) => {
      r.asset.symbol = 'USDT';
    },
    'Seal',
    'seal.signature',
  ],
  [
    'another transaction',
    (r) => {
      r.settlement.transactions[0]!.hash = someHash;
    },
    'Seal',
    'seal.signature',
  ],
  [
    'sums that still add up',
    (r) => {
      r.settlement.deposit = String(BigInt(r.settlement.deposit) - 1n);
      r.settlement.refunded = String(BigInt(r.settlement.refunded) - 1n);
    },
    'Seal',
    'seal.signature',
  ],
  [
    'a field that no receipt has',
    (r) => {
      r.discount = '10 %';
    },
    'Seal',
    'seal.signature',
  ],
];

describe('is not taken for true with', () => {
  test.each(tamperings)('%s', async (_, tamper, fault, field) => {
    const receipt = copy();
    tamper(receipt);
    const faults = await check(receipt);
    expect(faults[0]).toMatchObject({ fault, field });
    expect(faults[0]!.given).not.toBe(faults[0]!.expected);
    // Nobody changes anything without the seal telling.
    expect(faults.map((one) => one.fault)).toEqual(expect.arrayContaining([expect.stringMatching(/^Seal/)]));
  });
});

test('one wrong figure is named once, with what it should be', async () => {
  const receipt = copy();
  receipt.settlement.paid = '0';
  const [paid, seal, ...others] = await check(receipt);
  expect(paid).toMatchObject({ fault: 'Paid', given: '0', expected: paper.receipt.settlement.paid });
  expect([seal!.fault, others]).toEqual(['Seal', []]);
});

test('even both sides together cannot bill beyond the term of the quote', async () => {
  const { seal: _, ...unsealed } = copy();
  const leaseId = unsealed.leaseId as Hex32;
  const voucher = { leaseId, servedSeconds: 3601, last: true };
  unsealed.voucher = {
    ...voucher,
    signature: (await signVoucher(exampleKeys.session, exampleChain, voucher)).signature,
  };
  Object.assign(unsealed.settlement, { servedSeconds: 3601, closingAt: unsealed.settlement.openedAt + 3700 });
  const sealed = { ...unsealed, seal: await sealReceipt(exampleKeys.session, unsealed as Receipt) } as Receipt;
  expect((await check(sealed))[0]).toMatchObject({
    fault: 'ServedBeyondTerm',
    given: '3601',
    expected: 'at most 3600',
  });
});

describe('a forger who has the keys of only one side', () => {
  test("cannot bill more with the provider's key alone", async () => {
    const receipt = copy();
    const { servedSeconds } = receipt.settlement;
    const leaseId = receipt.leaseId as Hex32;
    receipt.settlement.servedSeconds = servedSeconds + 1;
    receipt.settlement.closingAt += 60;
    const more = await signRelease(exampleKeys.provider, exampleChain, { leaseId, servedSeconds: servedSeconds + 1 });
    receipt.release = { ...receipt.release!, servedSeconds: servedSeconds + 1, signature: more.signature };
    expect((await check(receipt)).map(({ fault }) => fault)).toEqual(
      expect.arrayContaining(['ServedBeyondVoucher', 'Claimed', 'Seal']),
    );
  });

  test('cannot sign a voucher and seal with a key of its own when the reader knows whose to expect', async () => {
    const { seal: _, ...unsealed } = copy();
    const { stranger } = exampleKeys;
    const leaseId = unsealed.leaseId as Hex32;
    const voucher = { leaseId, servedSeconds: unsealed.voucher.servedSeconds, last: true };
    unsealed.voucher = {
      ...unsealed.voucher,
      signature: (await signVoucher(stranger, exampleChain, voucher)).signature,
    };
    unsealed.settlement.signer = stranger.address;
    const forged = { ...unsealed, seal: await sealReceipt(stranger, unsealed as Receipt) } as Receipt;
    // By itself it is consistent: that is why somebody must be expected, or the chain be asked.
    expect(await check(forged)).toEqual([]);
    const sessionKey = exampleKeys.session.address;
    expect(await check(forged, { sessionKey })).toMatchObject([
      { fault: 'UnexpectedSessionKey', expected: sessionKey },
    ]);
    expect(await check(forged, {}, words())).toMatchObject([{ fault: 'ChainEscrow', field: 'settlement.signer' }]);
  });

  test.each([
    ['provider', 'UnexpectedProvider'],
    ['consumer', 'UnexpectedConsumer'],
  ])('is told apart by the %s that is expected', async (who, fault) => {
    expect(await check(paper.receipt, { [who]: someone })).toMatchObject([{ fault, expected: someone }]);
  });
});

/** What an honest chain says. */
function words(change: Partial<ChainWords> = {}): ChainWords {
  const { settlement, asset } = paper.receipt;
  return {
    escrow: paper.escrow,
    feeRecipient: settlement.feeRecipient,
    token: { symbol: asset.symbol, decimals: asset.decimals },
    transactions: new Map(
      settlement.transactions.map(({ hash, blockNumber }) => [hash, { blockNumber, touches: true }]),
    ),
    ...change,
  };
}

describe('the chain', () => {
  test('agrees with a true receipt', async () => {
    expect(await check(paper.receipt, {}, words())).toEqual([]);
  });

  const [first] = ['settlement.transactions[0].hash'];
  test.each([
    ['has no such escrow', () => words({ escrow: undefined }), 'NotOnChain', 'leaseId'],
    ['refunded less', () => words({ escrow: { ...paper.escrow, refunded: 1n } }), 'ChainEscrow', 'settlement.refunded'],
    [
      'was opened with another quote',
      () => words({ escrow: { ...paper.escrow, quoteHash: someHash as Hex32 } }),
      'ChainEscrow',
      'quote.quote',
    ],
    [
      'closed it for another reason',
      () => words({ escrow: { ...paper.escrow, closeReason: 'ProviderUnpaid' } }),
      'ChainEscrow',
      'settlement.closeReason',
    ],
    [
      'calls the token otherwise',
      () => words({ token: { symbol: 'FAKE', decimals: 6 } }),
      'ChainToken',
      'asset.symbol',
    ],
    ['counts other decimals', () => words({ token: { symbol: 'USDC', decimals: 18 } }), 'ChainToken', 'asset.decimals'],
    ['does not know a transaction', () => words({ transactions: new Map() }), 'ChainTransaction', first],
    [
      'knows it as one about something else',
      () =>
        words({
          transactions: new Map(
            paper.receipt.settlement.transactions.map(({ hash, blockNumber }) => [
              hash,
              { blockNumber, touches: false },
            ]),
          ),
        }),
      'ChainTransaction',
      first,
    ],
  ] as const)('%s', async (_, chain, fault, field) => {
    expect((await check(paper.receipt, {}, chain()))[0]).toMatchObject({ fault, field });
  });
});

test('a provider that is a contract may say on chain that the signatures are its own', async () => {
  const receipt = copy();
  receipt.quote.signature = `0x${'11'.repeat(80)}`;
  const proofs = await proofsOf(receipt, receipt);
  expect(faultsOf(receipt, proofs).map(({ fault }) => fault)).toContain('QuoteSignature');
  expect(faultsOf(receipt, { ...proofs, quoteAccepted: true }).map(({ fault }) => fault)).not.toContain(
    'QuoteSignature',
  );
});
