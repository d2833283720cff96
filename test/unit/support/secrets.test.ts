/** The net that secrets are looked for with: that it holds what was planted, and lets through what only looks so. */
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, test } from 'vitest';
import { keyFromHex, newKeyHex } from '../../../operator/adapters/chain/key.ts';
import { signVoucher } from '../../../operator/adapters/chain/messages.ts';
import { selfSigned } from '../../../operator/adapters/gateway/certificate.ts';
import { createLog } from '../../../operator/adapters/telemetry/log.ts';
import type { Hex32 } from '../../../operator/api/messages.ts';
import { type KubeObject, resources } from '../../../operator/engine/types.ts';
import { createLeaseTokens } from '../../../operator/gateway/tokens.ts';
import { fakeCluster } from '../../support/fake-cluster.ts';
import { createSecrets, type Finding, Leak, secretsIn, secretsOfKubeconfig } from '../../support/secrets.ts';
import { addFiles, searchLogs, searchObjects } from '../../support/watched-sandbox.ts';

const dir = mkdtempSync(join(tmpdir(), 'secrets-'));
afterAll(() => rmSync(dir, { recursive: true }));

const privateKey = newKeyHex();
const leaseId: Hex32 = `0x${'5a'.repeat(32)}`;
const escrow = `0x${'e'.repeat(40)}` as const;
const signature = (
  await signVoucher(keyFromHex(privateKey), { chainId: 1, escrow }, { leaseId, servedSeconds: 60, last: false })
).signature;
const transaction = await keyFromHex(privateKey).signTransaction({
  type: 2,
  chainId: 1,
  to: escrow,
  data: `0x${'ab'.repeat(100)}`,
  gasLimit: 1n,
});
const hmacKey = Buffer.alloc(32, 0x91);
const inAMinute = Math.floor(Date.now() / 1000) + 60;
const token = createLeaseTokens(hmacKey, () => new Date()).issue(leaseId, inAMinute).token;
const jwt = ['{"alg":"RS256","kid":"x"}', '{"sub":"system:serviceaccount:a:b"}', 'seal of this token']
  .map((part) => Buffer.from(part).toString('base64url'))
  .join('.');
const password = 'correct horse battery staple';
const { key: pem } = await selfSigned(['localhost'], new Date());

function net() {
  const secrets = createSecrets();
  secrets.add('a session key', privateKey);
  const data = { password, text: 'first line\nAKIA-second-line-of-it' };
  const encoded = Object.fromEntries(
    Object.entries({ ...data }).map(([name, value]) => [name, Buffer.from(value).toString('base64')]),
  );
  for (const { what, value } of [
    ...secretsIn({ metadata: { namespace: 'ml', name: 'db' }, data: encoded }),
    ...secretsIn({ metadata: { name: 'access' }, data: { key: hmacKey.toString('base64') } }),
    ...secretsIn({ metadata: { name: 'tls' }, data: { 'tls.key': Buffer.from(pem).toString('base64') } }),
  ])
    secrets.add(what, value);
  return secrets;
}

describe('what was planted is found, and not told', () => {
  test.each<[string, string]>([
    ['a private key', privateKey],
    ['a private key without its 0x', privateKey.slice(2)],
    ['a signature', signature],
    ['a signature without its 0x', signature.slice(2)],
    ['a signed transaction', transaction],
    ['a token of the gateway', token],
    ['a token of an API server', jwt],
    ['a header', `Authorization: Bearer ${token.replaceAll('eyJ', 'x')}`],
    ['a value of a Secret', password],
    ['a value of a Secret, as objects hold it', Buffer.from(password).toString('base64')],
    ['one line of a value', 'AKIA-second-line-of-it'],
    ['the key of the lease tokens', hmacKey.toString('base64')],
    ['the key of the lease tokens, in hexadecimal', hmacKey.toString('hex')],
    ['a private key in PEM', pem],
    ['a line of one', pem.split('\n')[1]!],
  ])('%s', (_, planted) => {
    const found = net().search(
      'log operator.log',
      `{"level":"info"}\n{"msg":"refused: ${planted.replaceAll('\n', '\\n')}"}\n`,
    );
    expect(found.length).toBeGreaterThan(0);
    expect(found[0]!.where).toBe('log operator.log, line 2');
    expect(new Leak(found).message).not.toContain(planted.slice(0, 40));
  });
});

test('what is public is let through', () => {
  const { message } = new Error(
    `escrow ${leaseId} of ${escrow} at block 0x${'7'.repeat(64)}, quote 0x${'8'.repeat(64)}`,
  );
  const calls = `0x${'ab'.repeat(200)}`;
  const redacted = 'authorization: Bearer [redacted], [token], [private key]';
  expect(
    net().search('x', `${message} ${calls} ${redacted} sha256//qPwKXg6Xsb1/A3cmSVe+2tNt0zL0YFNLbh4dxVxAwfM=`),
  ).toEqual([]);
});

test('of what we keep in JSON only the secret fields are secret', () => {
  const record = {
    leaseId,
    quote: { token: escrow, consumer: escrow },
    quoteSignature: signature,
    voucher: { servedSeconds: 3, signature },
    entries: [{ key: `open:${leaseId}`, raw: transaction }],
  };
  const data = { record: Buffer.from(JSON.stringify(record)).toString('base64') };
  const values = secretsIn({ metadata: { name: 'lease-x' }, data }).map(({ value }) => value);
  expect(values).toEqual([signature, signature, transaction]);
});

test('certificates are public, keys and tokens of kubeconfigs are not', () => {
  const data = {
    'ca.crt': 'QUFBQUFBQUFBQUFBQUFBQUFBQUE=',
    namespace: 'Z3B1bGVhc2Utc3lzdGVtLXg=',
    token: 'ZXlKaGJHYw==',
  };
  const found = secretsIn({ type: 'kubernetes.io/service-account-token', metadata: { name: 't' }, data });
  expect(found.map(({ what }) => what)).toEqual(['token of Secret undefined/t']);
  expect(secretsOfKubeconfig('  client-certificate-data: AAA\n  client-key-data: BBBB\n  token: "CCC"\n')).toEqual([
    'BBBB',
    'CCC',
  ]);
});

describe('a run', () => {
  const log = join(dir, 'log');
  mkdirSync(log);
  writeFileSync(join(dir, 'wallet.key'), privateKey);

  test('whose files of keys, logs and objects are clean is let through', async () => {
    const secrets = createSecrets();
    addFiles(secrets, dir);
    expect(secrets.size).toBeGreaterThan(0);
    const cluster = fakeCluster({ name: 'consumer' });
    cluster.seed(resources.gpuLeases, {
      metadata: { namespace: 'ml', name: 'train', uid: '1' },
      status: { leaseId },
    } as KubeObject);
    writeFileSync(join(log, 'operator.log'), '{"msg":"operator starts"}\n');
    const findings: Finding[] = [];
    expect(await searchObjects([cluster], secrets, new Map(), findings)).toBe(1);
    expect(searchLogs(log, secrets, findings)).toBeGreaterThan(20);
    expect(findings).toEqual([]);
  });

  test('fails for a key in a log, a token in an event, a signature in a status that is gone, and says where', async () => {
    const secrets = createSecrets();
    addFiles(secrets, dir);
    const cluster = fakeCluster({ name: 'consumer' });
    const event = { metadata: { namespace: 'ml', name: 'train.1', uid: '2' }, note: `the gateway refused ${token}` };
    cluster.seed(resources.eventsV1, event as unknown as KubeObject);
    const gone = { kind: 'GpuLease', metadata: { namespace: 'ml', name: 'train', uid: '3' }, status: { signature } };
    writeFileSync(join(log, 'operator.log'), `{"msg":"operator starts"}\n{"msg":"signing with ${privateKey}"}\n`);
    const findings: Finding[] = [];
    await searchObjects([cluster], secrets, new Map([['consumer 3', gone as unknown as KubeObject]]), findings);
    searchLogs(log, secrets, findings);
    expect(findings.map(({ what, where }) => `${what}: ${where}`)).toEqual([
      "a token of the gateway: Event ml/train.1 of the consumer's cluster, line 1",
      "a signature: GpuLease ml/train of the consumer's cluster, line 1",
      'the key in wallet.key: log operator.log, line 2',
    ]);
  });

  test('whose program is handed signatures and transactions to log writes none', () => {
    let written = '';
    const write = (line: string) => {
      written += line;
    };
    const logger = createLog({ name: 'operator', pretty: false, write });
    logger.warn(
      { error: new Error(`invalid transaction ${transaction}`), voucher: { signature } },
      `refused ${signature}`,
    );
    expect(createSecrets().search('log', written)).toEqual([]);
    expect(written).toContain('refused');
  });
});
