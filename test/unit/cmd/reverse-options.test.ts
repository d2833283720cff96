/** Flags for providers that nobody can connect to: what goes together, and what is said when it does not. */
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, test } from 'vitest';
import { parseGatewayOptions } from '../../../operator/cmd/gateway-options.ts';
import { checkReverse } from '../../../operator/cmd/reverse-listener.ts';

const dir = mkdtempSync(join(tmpdir(), 'gpulease-options-'));
afterAll(() => rmSync(dir, { recursive: true, force: true }));
const rails = join(dir, 'rails.json');
writeFileSync(rails, JSON.stringify([{ chainId: 1, escrow: `0x${'1'.repeat(40)}`, token: `0x${'2'.repeat(40)}` }]));
const parse = (...more: string[]) =>
  parseGatewayOptions(['--key-file', 'key', '--rails', rails, '--chain', '1=http://x', ...more], {});

describe('a gateway', () => {
  test('that dials out needs no URL of its own, and no port', () => {
    const options = parse(
      '--dial-out',
      'wss://a.example:9444',
      '--dial-out',
      `wss://b.example#spki=${'a'.repeat(64)}`,
      '--listen',
      'unix:/run/gateway.sock',
    );
    expect(options).toMatchObject({
      publicUrl: [],
      dialOut: [{ url: 'wss://a.example:9444' }, { url: 'wss://b.example', spkiSHA256: 'a'.repeat(64) }],
      at: { path: '/run/gateway.sock' },
    });
  });

  test('may have both', () => {
    const options = parse(
      '--dial-out',
      'wss://a.example',
      '--public-url',
      'https://gpu.example',
      '--listen',
      '[::1]:8443',
    );
    expect(options).toMatchObject({ publicUrl: ['https://gpu.example'], at: { host: '::1', port: 8443 } });
  });

  test.each([
    [[], /--public-url is missing.*or --dial-out/],
    [['--dial-out', 'http://a.example'], /--dial-out must be a URL such as wss:/],
    [['--dial-out', 'wss://a.example#pin'], /--dial-out must end with #spki=/],
    [['--dial-out', 'wss://a.example', '--listen', 'unix:gateway.sock'], /--listen must be HOST:PORT or unix:\/PATH/],
    [['--dial-out', 'wss://a.example', '--listen', 'here'], /--listen must be HOST:PORT or unix:\/PATH/],
  ])('given %j is told what is wrong', (given, why) => expect(() => parse(...given)).toThrow(why));
});

describe('an operator', () => {
  test.each([
    ['that lets nobody dial in', { reverseUrl: [] }],
    ['with an address and its URL', { reverseListen: '0.0.0.0:9444', reverseUrl: ['wss://a.example:9444'] }],
  ])('%s is well', (_, options) => expect(() => checkReverse(options)).not.toThrow());
  test.each([
    ['an address without a URL', { reverseListen: ':9444', reverseUrl: [] }, /--reverse-url is missing/],
    ['a URL without an address', { reverseUrl: ['wss://a.example'] }, /without --reverse-listen/],
    [
      'an address that is none',
      { reverseListen: '9444', reverseUrl: ['wss://a.example'] },
      /--reverse-listen must be HOST:PORT/,
    ],
  ])('%s is told', (_, options, why) => expect(() => checkReverse(options)).toThrow(why));
});
