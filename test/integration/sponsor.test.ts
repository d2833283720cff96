/**
 * The sponsor as its owner runs it: a process with a file of customers, an account that may touch Secrets of one namespace, a
 * real chain and a webhook. What it decides is tested in the unit tests, and over a broken chain by `npm run test:chain`.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Interface } from 'ethers';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { keyFromHex } from '../../operator/adapters/chain/key.ts';
import { leaseIdOf, signQuote, signVoucher } from '../../operator/adapters/chain/messages.ts';
import type { Hex, Hex32 } from '../../operator/api/messages.ts';
import { priceOf } from '../../operator/core/money/price.ts';
import { refunded, send, succeeded, webhookSecret } from '../support/card-processor.ts';
import { eventually, planes, type TestNamespace, testNamespace } from '../support/clusters.ts';
import { type EscrowChain, startEscrowChain } from '../support/escrow-chain.ts';
import { createSecrets } from '../support/secrets.ts';

const program = new URL('../../operator/cmd/sponsor.ts', import.meta.url).pathname;

let chain: EscrowChain;
let dir: string;
let namespace: TestNamespace;
let kubeconfig: string;
/** All that any of the processes wrote. */
let written = '';
const running = new Set<ChildProcess>();
const secrets = createSecrets();

beforeAll(async () => {
  const { consumer: plane } = await planes();
  chain = await startEscrowChain({ slotsInAnEpoch: 2, accounts: 10 });
  dir = await mkdtemp(join(tmpdir(), 'gpulease-sponsor-'));
  namespace = await testNamespace(plane, 'sponsor');
  // The rights that the reference names, and no others.
  const rbac = `/apis/rbac.authorization.k8s.io/v1/namespaces/${namespace.name}`;
  const group = { apiVersion: 'rbac.authorization.k8s.io/v1', metadata: { name: 'gpulease-sponsor' } };
  const rules = [{ apiGroups: [''], resources: ['secrets'], verbs: ['get', 'create', 'patch'] }];
  await plane.api.call('POST', `${rbac}/roles`, { ...group, kind: 'Role', rules });
  await plane.api.call('POST', `${rbac}/rolebindings`, {
    ...group,
    kind: 'RoleBinding',
    roleRef: { apiGroup: 'rbac.authorization.k8s.io', kind: 'Role', name: 'gpulease-sponsor' },
    subjects: [{ apiGroup: 'rbac.authorization.k8s.io', kind: 'User', name: 'sponsor-of-the-test' }],
  });
  kubeconfig = await file('kubeconfig', await plane.issueKubeconfig('sponsor-of-the-test', []));
}, 120_000);
afterAll(async () => {
  for (const child of running) child.kill('SIGKILL');
  await chain.stop();
  await namespace.remove();
  await rm(dir, { recursive: true, force: true });
});

async function file(name: string, content: string): Promise<string> {
  await writeFile(join(dir, name), content, { mode: 0o600 });
  return join(dir, name);
}

interface Program {
  readonly child: ChildProcess;
  /** What it wrote to standard output. */
  out(): string;
  ended(): Promise<number | null>;
}

function run(...args: string[]): Program {
  const child = spawn(process.execPath, [program, ...args], { stdio: ['ignore', 'pipe', 'pipe'] });
  running.add(child);
  let out = '';
  child.stdout.on('data', (chunk) => {
    out += chunk;
    written += chunk;
  });
  child.stderr.on('data', (chunk) => {
    written += chunk;
  });
  const end = once(child, 'close').then(([code]) => {
    running.delete(child);
    return code as number | null;
  });
  return { child, out: () => out, ended: () => end };
}

const customers = (symbol: string, consumer: string) => ({
  issuer: { lines: ['Sponsor Inc.'], dueDays: 14 },
  token: { symbol, decimals: 6 },
  customers: [{ name: 'acme', consumer, creditLimit: '5', currency: 'USD', rate: '1', billTo: ['Acme'] }],
});

test('funds, charges, is paid and stops, and is none the worse for being killed', async () => {
  const { anvil, client, keys, usdc } = chain;
  const privateKey = anvil.accounts[9]!.privateKey;
  const sponsor = keyFromHex(privateKey);
  secrets.add('the key of the sponsor', privateKey);
  secrets.add('the secret of the webhook', webhookSecret);
  const purse = 10n ** 9n;
  const mint = new Interface(['function mint(address to, uint256 amount)']);
  await chain.send(keys.deployer, { to: usdc, data: mint.encodeFunctionData('mint', [sponsor.address, purse]) as Hex });
  await chain.send(keys.consumer, client.calls.approve(usdc));
  const makeSafe = () => anvil.rpc('anvil_mine', '0x8');

  const known = await file('customers.json', JSON.stringify(customers('USDC', keys.consumer.address)));
  const store = ['--kubeconfig', kubeconfig, '--namespace', namespace.name];
  const start = async (who = known) =>
    run(
      ...['--key-file', await file('key', privateKey), '--chain', `${anvil.chainId}=${anvil.rpcUrl}`, ...store],
      ...['--escrow', client.address, '--token', usdc, '--customers', who, '--interval-seconds', '1'],
      ...['--webhook-secret-file', await file('webhook', webhookSecret), '--webhook-port', '0'],
      ...['--operations-port', '0', '--log-format', 'json'],
    );
  /** By the command that its owner has. */
  const invoice = async (...more: string[]) => {
    const month = new Date((await chain.now()) * 1000).toISOString().slice(0, 7);
    const asked = run('invoice', 'acme', '--month', month, '--customers', known, ...store, ...more);
    expect(await asked.ended()).toBe(0);
    return asked.out();
  };
  const total = async () => JSON.parse(await invoice()) as { number: string; total: string; due: string };
  const webhook = (one: Program) => {
    const line = one
      .out()
      .split('\n')
      .find((text) => text.includes('"msg":"sponsor starts"'));
    return line && `http://127.0.0.1:${JSON.parse(line).webhook}/webhooks/stripe`;
  };

  const quote = await chain.quote({ maxSeconds: 7200 });
  const signed = await signQuote(keys.provider, client.domain, quote);
  expect((await chain.send(keys.consumer, client.calls.open(signed, keys.session.address, 6_000n))).status).toBe(1);
  const leaseId: Hex32 = leaseIdOf(quote.consumer, quote.leaseRef);
  await makeSafe();

  const first = await start();
  await eventually(async () => (await client.lease(leaseId))!.deposit > 6_000n, 'the top-up', 60);
  first.child.kill('SIGKILL');
  await first.ended();
  const funded = (await client.lease(leaseId))!.deposit;
  // An hour ahead, of a lease that is some seconds old.
  expect(funded).toBeGreaterThanOrEqual(priceOf(3600, 1, 340_000n));
  expect(funded).toBeLessThan(priceOf(3660, 1, 340_000n));

  const second = await start();
  await eventually(async () => webhook(second) !== undefined, 'the second process', 60);
  await chain.pass(1200);
  const last = await signVoucher(keys.session, client.domain, { leaseId, servedSeconds: 1200, last: true });
  await chain.send(keys.provider, client.calls.close(last));
  await makeSafe();
  // 1200 s cost 113,333, of which 6,000 were the customer's; the rest comes back.
  await eventually(
    async () => {
      await makeSafe();
      return (await client.balance(usdc, sponsor.address)) === purse - 107_333n;
    },
    'what was not spent',
    60,
  );
  const { number, ...sums } = await total();
  expect(sums).toMatchObject({ total: '0.10', due: '0.10' });
  expect(await invoice('--format', 'html')).toContain('<!doctype html>');

  const url = webhook(second)!;
  const at = Math.floor(Date.now() / 1000);
  const paid = succeeded('pi_acme', number, 10, at);
  expect([await send(url, refunded('pi_acme', 4, at)), await send(url, paid), await send(url, paid)]).toEqual([
    200, 200, 200,
  ]);
  expect(await total()).toMatchObject({ number, total: '0.10', due: '0.04' });
  expect(await send(url, paid, at - 3600)).toBe(400);

  const since = Date.now();
  second.child.kill('SIGTERM');
  expect(await second.ended()).toBe(0);
  expect(Date.now() - since).toBeLessThan(15_000);
  expect(second.out()).toContain('sponsor stopped');

  const wrong = await start(await file('wrong.json', JSON.stringify(customers('EURC', keys.consumer.address))));
  expect(await wrong.ended()).toBe(2);
  expect(written).toContain('--customers: the token is USDC with 6 decimals, the file says EURC with 6');
  expect(secrets.search('what the sponsor wrote', written)).toEqual([]);
}, 300_000);
