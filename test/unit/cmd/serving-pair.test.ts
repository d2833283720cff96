/** A listener's certificate is shown as it is now, not as it was when the process began. */
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import tls from 'node:tls';
import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest';
import { type ServingCertificate, selfSigned, spkiSha256 } from '../../../operator/adapters/gateway/certificate.ts';
import { parseGatewayOptions } from '../../../operator/cmd/gateway-options.ts';
import { servingPair } from '../../../operator/cmd/serving-pair.ts';
import { startLinkListener } from '../../../operator/wire/link-listener.ts';
import { createLinks } from '../../../operator/wire/links.ts';
import { systemTiming } from '../../../operator/wire/timing.ts';
import { manualClock } from '../../support/clock.ts';

const flags = { cert: 'tls-cert', key: 'tls-key' };
const hosts = ['127.0.0.1'];
const silent = { debug: () => undefined, info: () => undefined, warn: () => undefined, error: () => undefined };

let dir: string;
beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), 'gpulease-pair-'));
});
afterEach(() => rmSync(dir, { recursive: true, force: true }));

const certFile = () => join(dir, 'tls.crt');
const keyFile = () => join(dir, 'tls.key');
function write(pair: Partial<ServingCertificate>): void {
  if (pair.cert !== undefined) writeFileSync(certFile(), pair.cert);
  if (pair.key !== undefined) writeFileSync(keyFile(), pair.key);
}
const fromFiles = () =>
  servingPair({
    flags,
    certFile: certFile(),
    keyFile: keyFile(),
    hosts,
    stored: () => Promise.reject(new Error('files were named')),
    now: () => new Date(),
  });

/** Follows what was read, on a clock of its own. */
function following(of: Awaited<ReturnType<typeof fromFiles>>) {
  const clock = manualClock();
  const stop = new AbortController();
  const shown: ServingCertificate[] = [];
  const warnings: string[] = [];
  const warn = ({ error }: { error?: string }) => void warnings.push(String(error));
  const done = of.follow((pair) => void shown.push(pair), {
    log: { ...silent, warn } as never,
    signal: stop.signal,
    clock,
  });
  return {
    shown,
    warnings,
    minute: () => clock.advance(60_000),
    async end() {
      stop.abort(new Error('over'));
      await done;
    },
  };
}

describe('files', () => {
  test('that are replaced are shown within a minute, once', async () => {
    const [first, second] = await Promise.all([selfSigned(hosts, new Date()), selfSigned(hosts, new Date())]);
    write(first);
    const serving = await fromFiles();
    const followed = following(serving);
    await followed.minute();
    expect(followed.shown).toEqual([]);
    write(second);
    await followed.minute();
    await followed.minute();
    expect(followed.shown).toEqual([second]);
    expect(serving.pair).toEqual(second);
    expect(serving.spkiSHA256).toBe(spkiSha256(second.cert));
    await followed.end();
  });

  test.each<[string, (second: ServingCertificate) => void, RegExp]>([
    ['half replaced', ({ cert }) => write({ cert }), /tls\.key is not the key of the certificate in .*tls\.crt/],
    ['emptied', () => write({ cert: '' }), /holds no PEM certificate/],
    ['without their key', () => write({ key: 'nothing' }), /holds no PEM private key/],
    ['removed', () => rmSync(certFile()), /cannot be read \(ENOENT\)/],
  ])('that are %s leave the earlier pair in use, and say so', async (_, spoil, why) => {
    const [first, second] = await Promise.all([selfSigned(hosts, new Date()), selfSigned(hosts, new Date())]);
    write(first);
    const serving = await fromFiles();
    const followed = following(serving);
    await followed.minute();
    spoil(second);
    await followed.minute();
    expect(followed.shown).toEqual([]);
    expect(serving.pair).toEqual(first);
    expect(followed.warnings.at(-1)).toMatch(why);
    expect(followed.warnings.join()).not.toContain('PRIVATE KEY-----');
    write(second);
    await followed.minute();
    expect(followed.shown).toEqual([second]);
    await followed.end();
  });

  test('that do not belong together are refused at the start', async () => {
    const [first, second] = await Promise.all([selfSigned(hosts, new Date()), selfSigned(hosts, new Date())]);
    write({ cert: first.cert, key: second.key });
    await expect(fromFiles()).rejects.toThrow(/--tls-key: .* is not the key of the certificate/);
  });
});

test.each([
  ['--tls-cert', 'tls.crt'],
  ['--tls-key', 'tls.key'],
])('a gateway that is given %s alone is told before it reaches anything', (flag, file) => {
  const others = ['--key-file', 'key', '--public-url', 'https://gpu.example.com'];
  expect(() => parseGatewayOptions([...others, flag, file], {})).toThrow(/--tls-cert and --tls-key are given together/);
});

test('a certificate of its own is renewed before it ends, with the key that is pinned', async () => {
  const made = await selfSigned(hosts, new Date());
  let nowMs = Date.now();
  const serving = await servingPair({ flags, hosts, stored: async () => made, now: () => new Date(nowMs) });
  const followed = following(serving);
  await followed.minute();
  expect(followed.shown).toEqual([]);
  nowMs += 800 * 86_400_000;
  await followed.minute();
  await vi.waitFor(() => expect(followed.shown).toHaveLength(1));
  expect(spkiSha256(followed.shown[0]!.cert)).toBe(spkiSha256(made.cert));
  await followed.minute();
  expect(followed.shown).toHaveLength(1);
  await followed.end();
});

test('a listener shows the new one to new connections, and keeps those that are open', async () => {
  const [first, second] = await Promise.all([selfSigned(hosts, new Date()), selfSigned(hosts, new Date())]);
  const listener = await startLinkListener({
    host: '127.0.0.1',
    port: 0,
    tls: first,
    links: createLinks({ clock: systemTiming, now: () => new Date() }),
    keeper: {
      audiences: new Set(),
      verify: () => Promise.reject(new Error('nobody links here')),
      refuses: () => undefined,
      now: () => new Date(),
    } as never,
    clock: systemTiming,
    log: silent,
  });
  const connect = () =>
    new Promise<tls.TLSSocket>((resolve, reject) => {
      const socket = tls.connect({ host: '127.0.0.1', port: listener.port, rejectUnauthorized: false }, () =>
        resolve(socket),
      );
      socket.once('error', reject);
    });
  const before = await connect();
  listener.setTls(second);
  const after = await connect();
  const pinOf = (socket: tls.TLSSocket) => spkiSha256(socket.getPeerX509Certificate()!.toString());
  expect([pinOf(before), pinOf(after)]).toEqual([spkiSha256(first.cert), spkiSha256(second.cert)]);
  expect(before.destroyed).toBe(false);
  for (const socket of [before, after]) socket.destroy();
  await listener.close();
});
