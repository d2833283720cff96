/**
 * A chain to break: anvil with the contracts on it, two endpoints that misbehave when they are told to, and processes that are
 * killed. What is tested are the production outbox, connection, escrow client and decisions; of ours here are the stores in
 * files, where a Secret would be.
 */
import { spawn } from 'node:child_process';
import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { connectEscrow, type EscrowClient } from '../../operator/adapters/chain/escrow-client.ts';
import { type ChainKey, keyFromHex } from '../../operator/adapters/chain/key.ts';
import { leaseIdOf, signQuote, signVoucher } from '../../operator/adapters/chain/messages.ts';
import {
  createOutbox,
  type Intent,
  type Outbox,
  type OutboxEntry,
  type OutboxOptions,
  type OutboxRecord,
} from '../../operator/adapters/chain/outbox.ts';
import { connectRpc, type Rpc, type RpcOptions } from '../../operator/adapters/chain/rpc.ts';
import { memoryStore } from '../../operator/adapters/chain/store.ts';
import type { Address, Hex, Hex32, Quote } from '../../operator/api/messages.ts';
import { intents } from '../../operator/core/lease/observed.ts';
import type { Escrow } from '../../operator/core/money/escrow.ts';
import { type Anvil, startAnvil } from '../../operator/sandbox/chain/anvil.ts';
import { type EscrowChain, type Role, startEscrowChain } from '../support/escrow-chain.ts';
import { type FaultyRpc, startFaultyRpc } from '../support/faulty-rpc.ts';
import type { Instructions } from '../support/outbox-process.ts';
import { expect, Wrong } from './scenario.ts';

/** How blocks come: one for each transaction, or one a second whatever there is. */
export type Mode = 'automine' | 'block-time 1';

/** The safe head is so far behind: no reorganisation here is deeper. */
export const safeLag = 32;

export interface OpenLease {
  readonly leaseId: Hex32;
  readonly quote: Quote;
  readonly deposit: bigint;
}

export interface ChainLab {
  readonly mode: Mode;
  readonly chain: EscrowChain;
  readonly anvil: Anvil;
  /** In front of the chain; a connection is given both. */
  readonly endpoints: readonly [FaultyRpc, FaultyRpc];
  /** Ours, which tests put forward; the chain's goes its own way. */
  readonly clock: { now(): Date; pass(seconds: number): void };
  connect(options?: Partial<RpcOptions>): Promise<Rpc>;
  outbox(options?: Partial<OutboxOptions>): Promise<Outbox>;
  /** Asks the chain past all faults. */
  nonce(key: ChainKey, block?: 'latest' | 'pending'): Promise<number>;
  lease(leaseId: Hex32): Promise<Escrow | undefined>;
  sentToNodes(): number;
  /** No block until `go`, but those of `mine`. */
  hold(): Promise<void>;
  go(): Promise<void>;
  mine(blocks: number): Promise<void>;
  /** All that is mined so far is safe. */
  makeSafe(): Promise<void>;
  reorganise(depth: number, transactions?: readonly (readonly [raw: Hex, block: number])[]): Promise<void>;
  /** An escrow that is open, past all faults. */
  open(changes?: Partial<Quote>, deposit?: bigint, by?: Role): Promise<OpenLease>;
  /** A wish to open one. */
  openIntent(changes?: Partial<Quote>, deposit?: bigint): Promise<OpenLease & { readonly intent: Intent }>;
  /** A wish that the contract would grant twice: the deposit shows how often it was. */
  topUpIntent(lease: OpenLease, amount?: bigint): Intent;
  /** Ticks until the transaction is mined, as the operator would. */
  untilMined(outbox: Outbox, key: string, seconds?: number): Promise<OutboxEntry>;
  untilFinal(outbox: Outbox, key: string): Promise<OutboxEntry>;
  voucher(leaseId: Hex32, servedSeconds: number, last?: boolean): ReturnType<typeof signVoucher>;
  /** Runs an outbox in a process of its own; tells whether it was killed. */
  process(
    instructions: Omit<Instructions, 'urls' | 'chainId' | 'privateKey' | 'file'>,
    file: string,
  ): Promise<ProcessEnd>;
  storeFile(): string;
  /** Another chain with the same id, accounts and contracts, of which `blocks` more are mined; ended with the scenario. */
  twin(blocks: number): Promise<Anvil>;
  key(index: number): ChainKey;
  until<T>(what: string, look: () => Promise<T | undefined>, seconds?: number): Promise<T>;
  /** After each scenario: nothing of it stays. */
  mend(): Promise<void>;
  stop(): Promise<void>;
}

export interface ProcessEnd {
  readonly killed: boolean;
  readonly entry?: { readonly state: string; readonly hashes: readonly string[]; readonly nonce: number };
}

/** `hear` is told all that processes beside this one write. */
export async function startChainLab(mode: Mode, hear: (text: string) => void = () => undefined): Promise<ChainLab> {
  const chain = await startEscrowChain({
    slotsInAnEpoch: safeLag,
    accounts: 120,
    ...(mode === 'block-time 1' && { blockTimeSeconds: 1 }),
  });
  const { anvil, client, keys } = chain;
  const endpoints = [await startFaultyRpc(anvil.rpcUrl), await startFaultyRpc(anvil.rpcUrl)] as const;
  const dir = await mkdtemp(join(tmpdir(), 'gpulease-test-chain-'));
  const twins: Anvil[] = [];
  let files = 0;
  let offsetSeconds = 0;
  const clock = {
    now: () => new Date(Date.now() + offsetSeconds * 1000),
    pass: (seconds: number) => {
      offsetSeconds += seconds;
    },
  };
  for (const token of [chain.usdc, chain.gpu]) await chain.send(keys.consumer, client.calls.approve(token));

  const mine = (blocks: number) => anvil.rpc<void>('anvil_mine', `0x${blocks.toString(16)}`);
  const blocksCome = (on: boolean) =>
    mode === 'automine' ? anvil.rpc('evm_setAutomine', on) : anvil.rpc('evm_setIntervalMining', on ? 1 : 0);

  async function until<T>(what: string, look: () => Promise<T | undefined>, seconds = 30): Promise<T> {
    const end = Date.now() + seconds * 1000;
    for (;;) {
      const found = await look();
      if (found !== undefined) return found;
      if (Date.now() > end) throw new Wrong(`after ${seconds} s: no ${what}`);
      await sleep(50);
    }
  }

  async function untilMined(outbox: Outbox, key: string, seconds = 30): Promise<OutboxEntry> {
    return until(
      `receipt of ${key}`,
      async () => {
        await outbox.tick().catch(() => undefined);
        const entry = await outbox.state(key);
        return entry?.receipt ? entry : undefined;
      },
      seconds,
    );
  }

  async function prepare(changes: Partial<Quote>, deposit: bigint) {
    const quote = await chain.quote(changes);
    const signed = await signQuote(keys.provider, client.domain, quote);
    const leaseId = leaseIdOf(quote.consumer, quote.leaseRef);
    return { quote, leaseId, deposit, call: client.calls.open(signed, keys.session.address, deposit) };
  }

  const lab: ChainLab = {
    mode,
    chain,
    anvil,
    endpoints,
    clock,
    connect: (options) =>
      connectRpc({
        urls: endpoints.map((one) => one.url),
        chainId: anvil.chainId,
        timeoutMs: 1500,
        compareSeconds: 0.2,
        // The chain's clock runs ahead of ours where time was made to pass.
        now: () => new Date(8.64e15),
        ...options,
      }),
    async outbox(options = {}) {
      const rpc = options.rpc ?? (await lab.connect());
      return createOutbox({ key: keys.consumer, store: memoryStore<OutboxRecord>(), now: clock.now, ...options, rpc });
    },
    nonce: async (key, block = 'latest') => Number(await anvil.rpc<Hex>('eth_getTransactionCount', key.address, block)),
    lease: (leaseId) => client.lease(leaseId),
    sentToNodes: () => endpoints.reduce((sum, one) => sum + (one.calls.get('eth_sendRawTransaction') ?? 0), 0),
    async hold() {
      await blocksCome(false);
    },
    async go() {
      await blocksCome(true);
      if (mode === 'automine') await mine(1);
    },
    mine,
    makeSafe: () => mine(safeLag + 1),
    reorganise: async (depth, transactions = []) => {
      await anvil.rpc('anvil_reorg', depth, transactions);
    },
    async open(changes = {}, deposit = 100_000n, by = 'consumer') {
      const { call, ...lease } = await prepare(
        { ...(by !== 'consumer' && { consumer: keys[by].address }), ...changes },
        deposit,
      );
      const { status } = await chain.send(keys[by], call);
      expect(status === 1, 'the escrow that the scenario begins with could not be opened');
      return lease;
    },
    async openIntent(changes = {}, deposit = 100_000n) {
      const { call, ...lease } = await prepare(changes, deposit);
      return { ...lease, intent: { key: intents.open(lease.leaseId), ...call } };
    },
    topUpIntent: ({ leaseId, deposit }, amount = 7_000n) => ({
      key: intents.topUp(leaseId, deposit + amount),
      ...client.calls.topUp(leaseId, amount),
    }),
    untilMined,
    async untilFinal(outbox, key) {
      await untilMined(outbox, key);
      await lab.makeSafe();
      return until(`safe receipt of ${key}`, async () => {
        await outbox.tick();
        const entry = await outbox.state(key);
        return entry?.receipt?.safe ? entry : undefined;
      });
    },
    voucher: (leaseId, servedSeconds, last = false) =>
      signVoucher(keys.session, client.domain, { leaseId, servedSeconds, last }),
    process: (instructions, file) =>
      runProcess(
        {
          ...instructions,
          urls: endpoints.map((one) => one.url),
          chainId: anvil.chainId,
          privateKey: anvil.accounts[1]!.privateKey,
          file,
        },
        hear,
      ),
    storeFile: () => {
      files += 1;
      return join(dir, `outbox-${files}.json`);
    },
    async twin(blocks) {
      const twin = await startAnvil({
        dir: join(dir, `twin-${twins.length}`),
        report: () => undefined,
        slotsInAnEpoch: safeLag,
        accounts: 2,
      });
      twins.push(twin);
      const state = await anvil.rpc<string>('anvil_dumpState');
      await twin.rpc('anvil_loadState', state);
      // Or its blocks, made in the same second, would be the very same ones.
      await twin.rpc('anvil_setCoinbase', nobody);
      await twin.rpc('anvil_mine', `0x${blocks.toString(16)}`);
      return twin;
    },
    key: (index) => keyFromHex(anvil.accounts[index]!.privateKey),
    until,
    async mend() {
      for (const one of endpoints) {
        one.behave();
        one.aim(anvil.rpcUrl);
      }
      await lab.go();
      for (const twin of twins.splice(0)) await twin.stop();
    },
    async stop() {
      for (const twin of twins.splice(0)) await twin.stop();
      await Promise.all(endpoints.map((one) => one.close()));
      await chain.stop();
      await rm(dir, { recursive: true, force: true });
    },
  };
  return lab;
}

/** As the operator's client: over the endpoints that misbehave. */
export const escrowOver = (lab: ChainLab, rpc: Rpc): Promise<EscrowClient> =>
  connectEscrow({ rpc, escrow: lab.chain.client.address });

const program = new URL('../support/outbox-process.ts', import.meta.url).pathname;

function runProcess(instructions: Instructions, hear: (text: string) => void): Promise<ProcessEnd> {
  return new Promise((resolve, reject) => {
    const child = spawn(process.execPath, [program, JSON.stringify(instructions)], {
      stdio: ['ignore', 'pipe', 'pipe'],
    });
    let out = '';
    let complaint = '';
    child.stdout.on('data', (chunk) => {
      out += chunk;
    });
    child.stderr.on('data', (chunk) => {
      complaint = `${complaint}${chunk}`.slice(-2000);
    });
    child.once('error', reject);
    child.once('close', (code, signal) => {
      hear(`${out}\n${complaint}\n`);
      if (signal === 'SIGKILL') resolve({ killed: true });
      else if (code !== 0) reject(new Wrong(`the outbox process failed: ${complaint.trim().split('\n').at(-1)}`));
      else resolve({ killed: false, entry: JSON.parse(out).entry });
    });
  });
}

export const readStore = async (file: string): Promise<OutboxRecord> => JSON.parse(await readFile(file, 'utf8')).value;

/** Address of an account that holds nothing. */
export const nobody: Address = `0x${'0'.repeat(38)}99`;
