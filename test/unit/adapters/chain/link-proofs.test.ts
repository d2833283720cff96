/** By what a gateway's certificate is known where nobody can write it down before. */
import { expect, test } from 'vitest';
import { keyFromHex } from '../../../../operator/adapters/chain/key.ts';
import { gatewayKeyReader, gatewayKeyStatement } from '../../../../operator/adapters/chain/link-proofs.ts';
import { selfSigned, spkiSha256 } from '../../../../operator/adapters/gateway/certificate.ts';

const key = keyFromHex('1'.repeat(64));
const stranger = keyFromHex('2'.repeat(64));
const start = new Date('2026-01-01T00:00:00Z');
const later = (hours: number) => new Date(start.getTime() + hours * 3_600_000);
const { cert } = await selfSigned(['gateway'], start);

test('the provider’s word for a certificate is believed, and remembered', async () => {
  const header = await gatewayKeyStatement(
    key,
    () => cert,
    () => start,
  )();
  const read = gatewayKeyReader(key.address.toLowerCase(), () => start);
  expect(read(header)).toEqual({ spkiSHA256: spkiSha256(cert) });
  expect(read(header)).toEqual({ spkiSHA256: spkiSha256(cert) });
});

test('it is signed anew before it runs out, and when the certificate has another key', async () => {
  let now = start;
  let current = cert;
  const statement = gatewayKeyStatement(
    key,
    () => current,
    () => now,
  );
  const first = await statement();
  now = later(11);
  expect(await statement()).toBe(first);
  now = later(13);
  const second = await statement();
  expect(second).not.toBe(first);
  current = (await selfSigned(['gateway'], start)).cert;
  expect(gatewayKeyReader(key.address, () => now)(await statement())).toEqual({ spkiSHA256: spkiSha256(current) });
});

const change = async (with_: object) => {
  const header = await gatewayKeyStatement(
    key,
    () => cert,
    () => start,
  )();
  const said = JSON.parse(Buffer.from(header, 'base64url').toString()) as object;
  return Buffer.from(JSON.stringify({ ...said, ...with_ })).toString('base64url');
};
test.each<[string, () => Promise<unknown>, Date, RegExp]>([
  ['nothing at all', async () => undefined, start, /did not say/],
  ['no JSON', async () => 'x', start, /cannot be read/],
  ['a giant', async () => 'x'.repeat(100_000), start, /did not say/],
  ['another key than was signed for', () => change({ spkiSHA256: 'a'.repeat(64) }), start, /not signed by/],
  [
    'more time than was signed for',
    () => change({ expiresAt: start.getTime() / 1000 + 50_000 }),
    start,
    /not signed by/,
  ],
  [
    'the word of another provider',
    () =>
      gatewayKeyStatement(
        stranger,
        () => cert,
        () => start,
      )(),
    start,
    /is that of/,
  ],
  [
    'another’s word under this provider’s name',
    async () => {
      const header = await gatewayKeyStatement(
        stranger,
        () => cert,
        () => start,
      )();
      const said = JSON.parse(Buffer.from(header, 'base64url').toString()) as object;
      return Buffer.from(JSON.stringify({ ...said, provider: key.address })).toString('base64url');
    },
    start,
    /not signed by/,
  ],
  [
    'a word that has run out',
    () =>
      gatewayKeyStatement(
        key,
        () => cert,
        () => start,
      )(),
    later(25),
    /has run out/,
  ],
  [
    'one of a clock that is wrong',
    () =>
      gatewayKeyStatement(
        key,
        () => cert,
        () => later(9),
      )(),
    start,
    /for too long/,
  ],
])('not believed is %s', async (_, header, now, why) => {
  const said = gatewayKeyReader(key.address, () => now)(await header());
  expect('why' in said && said.why).toMatch(why);
});
