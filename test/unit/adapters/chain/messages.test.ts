import { readFileSync } from 'node:fs';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { inspect } from 'node:util';
import { encryptKeystoreJsonSync, Interface, keccak256, Signature } from 'ethers';
import { describe, expect, it } from 'vitest';
import { KeyError, keyFromHex, loadKey, newKeyHex } from '../../../../operator/adapters/chain/key.ts';
import {
  hashAccess,
  hashJson,
  leaseIdOf,
  leaseRefOf,
  quoteFromJson,
  quoteToJson,
  SignatureMismatch,
  signAccess,
  signQuote,
  signVoucher,
  verifyAccess,
  verifyQuote,
  verifyRelease,
  verifyVoucher,
} from '../../../../operator/adapters/chain/messages.ts';
import { decodeRefusal, knownRefusals } from '../../../../operator/adapters/chain/refusal.ts';
import { ChainUnavailable, RpcError } from '../../../../operator/adapters/chain/rpc.ts';
import { quoteJson } from '../../../../operator/api/gateway.ts';
import type { Address, Hex, Hex32, Quote } from '../../../../operator/api/messages.ts';
import { messageTypes } from '../../../../operator/api/messages.ts';
import { leaseEscrow } from '../../../../operator/contracts/generated/lease-escrow.ts';

const hex = `0x${'0'.repeat(63)}7`;
const key = keyFromHex(hex);
const other = keyFromHex(newKeyHex());
const zero32 = `0x${'00'.repeat(32)}` as Hex32;
const domain = { chainId: 31337, escrow: other.address };
const quote: Quote = {
  networkId: zero32,
  provider: key.address,
  payee: key.address,
  consumer: other.address,
  leaseRef: zero32,
  token: other.address,
  pricePerGpuHour: 2n ** 90n,
  gpus: 1,
  minSeconds: 1,
  maxSeconds: 2,
  startTimeoutSeconds: 3,
  graceSeconds: 4,
  capacityType: 0,
  specHash: zero32,
  saltCommit: zero32,
  referrer: other.address,
  referrerBps: 5,
  expiresAt: 1_900_000_000,
  nonce: 2n ** 255n,
};

describe('messages', () => {
  it('are typed as the contract hashes them', () => {
    const source = readFileSync(new URL('../../../../operator/contracts/src/LeaseEscrow.sol', import.meta.url), 'utf8');
    const joined = source.replace(/"\s+"/g, '');
    for (const kind of ['Quote', 'Voucher', 'Release'] as const) {
      const fields = messageTypes[kind].map(({ name, type }) => `${type} ${name}`).join(',');
      expect(joined).toContain(`"${kind}(${fields})"`);
    }
  });

  it('verify for their signer, chain and contract only', async () => {
    const signed = await signQuote(key, domain, quote);
    await verifyQuote(domain, signed);
    await expect(verifyQuote({ ...domain, chainId: 1 }, signed)).rejects.toThrow(SignatureMismatch);
    await expect(verifyQuote({ ...domain, escrow: key.address }, signed)).rejects.toThrow(SignatureMismatch);
    await expect(verifyQuote(domain, { ...signed, message: { ...quote, gpus: 2 } })).rejects.toThrow(SignatureMismatch);
    const mismatch = await verifyQuote(domain, await signQuote(other, domain, quote)).catch((error) => error);
    expect(mismatch).toMatchObject({ kind: 'Quote', expected: key.address, recovered: other.address, terminal: true });
    expect(mismatch.message).toContain(other.address);
  });

  it('in the compact form verify nowhere, as in the contract', async () => {
    const voucher = await signVoucher(key, domain, { leaseId: zero32, servedSeconds: 5, last: false });
    verifyVoucher(domain, voucher, key.address);
    const compact = { ...voucher, signature: Signature.from(voucher.signature).compactSerialized as Hex };
    expect(() => verifyVoucher(domain, compact, key.address)).toThrow(/no readable signature/);
    expect(() => verifyVoucher(domain, { ...voucher, signature: `0x${'ff'.repeat(65)}` }, key.address)).toThrow(
      SignatureMismatch,
    );
  });

  it('of access open one gateway', async () => {
    const message = {
      provider: key.address,
      audienceUrl: 'https://a.example',
      leaseId: zero32,
      nonce: zero32,
      expiresAt: 5,
    };
    const access = await signAccess(other, domain, message);
    verifyAccess(domain, access, other.address);
    const elsewhere = { ...access, message: { ...message, audienceUrl: 'https://b.example' } };
    expect(() => verifyAccess(domain, elsewhere, other.address)).toThrow(SignatureMismatch);
    expect(hashAccess(domain, message)).not.toBe(hashAccess(domain, elsewhere.message));
  });

  it('of a provider that is a contract are for the contract to judge; silence is no answer', async () => {
    const abi = new Interface(['function isValidSignature(bytes32 hash, bytes signature) view returns (bytes4)']);
    const wallet: Quote = { ...quote, provider: `0x${'aa'.repeat(20)}` };
    const signed = { message: wallet, signature: '0x1234' as Hex };
    const chain = (answer: () => Promise<Hex>) => ({ contractCall: answer });
    const yes = abi.encodeFunctionResult('isValidSignature', ['0x1626ba7e']) as Hex;
    await verifyQuote(
      domain,
      signed,
      chain(async () => yes),
    );
    await expect(verifyQuote(domain, signed)).rejects.toThrow(SignatureMismatch);
    for (const no of ['0x', `0x${'00'.repeat(32)}`, '0x1626ba7e'] as Hex[]) {
      await expect(
        verifyQuote(
          domain,
          signed,
          chain(async () => no),
        ),
      ).rejects.toThrow(SignatureMismatch);
    }
    const reverts = chain(async () => Promise.reject(new RpcError(3, 'execution reverted', '0x00')));
    await expect(verifyQuote(domain, signed, reverts)).rejects.toThrow(SignatureMismatch);
    const down = chain(async () => Promise.reject(new ChainUnavailable('down')));
    await expect(verifyQuote(domain, signed, down)).rejects.toThrow(ChainUnavailable);
    const release = { message: { leaseId: zero32, servedSeconds: 1 }, signature: '0x12' as Hex };
    await verifyRelease(
      domain,
      release,
      wallet.provider,
      chain(async () => yes),
    );
  });

  it('travel as JSON and come back', async () => {
    const json = JSON.parse(JSON.stringify(quoteToJson(quote)));
    expect(quoteFromJson(quoteJson.parse(json))).toEqual(quote);
  });
});

describe('ids', () => {
  it('differ by cluster, lease, attempt and consumer', () => {
    const refs = [leaseRefOf('c', 'l', 1), leaseRefOf('c', 'l', 2), leaseRefOf('cl', '', 1), leaseRefOf('', 'cl', 1)];
    expect(new Set(refs).size).toBe(4);
    // abi.encode("c", "l", 1), put together by hand: two offsets, the number, then length and bytes of each text.
    const word = (value: number) => value.toString(16).padStart(64, '0');
    const text = (letter: string) => word(1) + letter.charCodeAt(0).toString(16).padEnd(64, '0');
    expect(refs[0]).toBe(keccak256(`0x${word(0x60)}${word(0xa0)}${word(1)}${text('c')}${text('l')}`));
    expect(leaseIdOf(key.address, refs[0]!)).not.toBe(leaseIdOf(other.address, refs[0]!));
    expect(leaseIdOf(key.address.toLowerCase() as Address, refs[0]!)).toBe(leaseIdOf(key.address, refs[0]!));
  });

  it('of JSON do not depend on the order of its members', () => {
    expect(hashJson({ a: 1, b: [{ c: 'é', d: null }] })).toBe(
      hashJson({ b: [{ d: null, c: 'é' }], a: 1, e: undefined }),
    );
    expect(hashJson([1, 2])).not.toBe(hashJson([2, 1]));
    expect(() => hashJson({ a: Number.NaN })).toThrow(TypeError);
    expect(() => hashJson({ a: 1n })).toThrow(TypeError);
  });
});

describe('a key', () => {
  it('is read from a file of hexadecimal digits or a keystore', async () => {
    const dir = await mkdtemp(join(tmpdir(), 'gpulease-key-'));
    const plain = join(dir, 'plain');
    await writeFile(plain, `${hex.slice(2)}\n`);
    expect((await loadKey(plain)).address).toBe(key.address);
    const store = join(dir, 'store.json');
    await writeFile(
      store,
      encryptKeystoreJsonSync({ address: key.address, privateKey: hex }, 'secret', { scrypt: { N: 2 } }),
    );
    expect((await loadKey(store, 'secret')).address).toBe(key.address);
    await expect(loadKey(store, 'wrong')).rejects.toThrow(/does not open/);
    await expect(loadKey(store)).rejects.toThrow(/give its password/);
    await expect(loadKey(join(dir, 'none'))).rejects.toThrow(/ENOENT/);
    await rm(dir, { recursive: true });
  });

  it('shows itself nowhere', async () => {
    const secret = newKeyHex();
    const shown = keyFromHex(secret);
    expect(inspect(shown, { depth: 9, showHidden: true }) + JSON.stringify(shown)).not.toContain(secret.slice(2));
    for (const wrong of [`${secret}00`, secret.slice(0, 40), `0x${'ff'.repeat(32)}`, `0x${'zz'.repeat(32)}`]) {
      const error = (() => {
        try {
          return keyFromHex(wrong);
        } catch (caught) {
          return caught as Error;
        }
      })() as Error;
      expect(error).toBeInstanceOf(KeyError);
      expect(inspect(error)).not.toContain(wrong.slice(2, 30));
    }
  });
});

describe('refusals', () => {
  it('have words for every error of the contract', () => {
    const names = leaseEscrow.abi.filter((item) => item.type === 'error').map((item) => item.name);
    // Of the libraries: brought about by no call that this program makes.
    const unreachable = /^(ECDSA|InvalidShortString|StringTooLong|OwnableInvalidOwner)/;
    expect(names.filter((name) => !(name in knownRefusals) && !unreachable.test(name))).toEqual([]);
  });

  it('are not guessed from what is no revert', () => {
    expect(decodeRefusal(new ChainUnavailable('down'))).toBeUndefined();
    expect(decodeRefusal(new RpcError(-32000, 'nonce too low'))).toBeUndefined();
    expect(decodeRefusal(new RpcError(3, 'execution reverted'))).toMatchObject({ name: 'Reverted', terminal: true });
    expect(decodeRefusal('0xdeadbeef')).toMatchObject({ name: 'Reverted', message: /unknown error 0xdeadbeef/ });
    const text = new Interface(['error Error(string)']).encodeErrorResult('Error', ['paused']);
    expect(decodeRefusal(text)).toMatchObject({ name: 'Reverted', message: 'the contract refused: paused' });
  });
});
