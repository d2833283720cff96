/**
 * The contracts by which the provider is paid, and its transactions to them. They are dialled in the background: a chain
 * that is away when the gateway starts must not keep it from serving what runs.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import type { Address, Hex, Hex32, Signed, Voucher } from '../../api/messages.ts';
import type { ProviderRail } from '../../core/allocation/quote.ts';
import { Refusal } from '../../core/allocation/refusal.ts';
import type { Escrow, EscrowReads, ProviderCloseReason } from '../../core/money/escrow.ts';
import type { Log } from '../../engine/types.ts';
import { connectEscrow, type EscrowClient } from '../chain/escrow-client.ts';
import type { ChainKey } from '../chain/key.ts';
import { createOutbox, type Outbox, type OutboxRecord, type Submitted } from '../chain/outbox.ts';
import { connectRpc, type Rpc } from '../chain/rpc.ts';
import type { Store } from '../chain/store.ts';

/** One contract with the tokens that are taken on it. */
export interface RailConfig {
  readonly chainId: number;
  readonly escrow: Address;
  readonly tokens: readonly Address[];
}

export interface EscrowChain {
  readonly chainId: number;
  readonly escrow: Address;
  readonly claimWindowSeconds: number;
  leases(leaseIds: readonly Hex32[], signal?: AbortSignal): Promise<readonly (Escrow | undefined)[]>;
  reads(leaseIds: readonly Hex32[], signal?: AbortSignal): Promise<readonly EscrowReads[]>;
  readonly calls: {
    settle(voucher: Signed<Voucher>): Call;
    settleMany(vouchers: readonly Signed<Voucher>[]): Call;
    close(voucher: Signed<Voucher>): Call;
    providerClose(leaseId: Hex32, reason: ProviderCloseReason): Call;
    finalize(leaseId: Hex32): Call;
  };
  submit(intent: { key: string; to: Address; data: Hex }, signal?: AbortSignal): Promise<Submitted>;
  tick(signal?: AbortSignal): Promise<void>;
  inFlight(signal?: AbortSignal): Promise<readonly string[]>;
}

interface Call {
  readonly to: Address;
  readonly data: Hex;
}

export interface EscrowChains {
  rails(): readonly ProviderRail[];
  chain(chainId: number, escrow: string): EscrowChain | undefined;
  all(): readonly EscrowChain[];
  /** This contract is one of ours, and has not been reached since the start. */
  awaited(chainId: number, escrow: string): boolean;
  /** One at least has been reached: leases of the others wait, and no others do. */
  readonly connected: boolean;
  /** Dials until all are reached. Rejects for a configuration that cannot be right: a wrong chain, no contract. */
  connect(signal: AbortSignal): Promise<void>;
}

export interface EscrowChainsOptions {
  readonly rails: readonly RailConfig[];
  readonly rpcUrls: ReadonlyMap<number, readonly string[]>;
  readonly key: ChainKey;
  readonly payee: Address;
  /** Where an account's transactions on one chain are kept. */
  readonly store: (chainId: number) => Store<OutboxRecord>;
  readonly now: () => Date;
  readonly log: Log;
}

const redialSeconds = 2;

const isTerminal = (error: unknown): boolean =>
  typeof error === 'object' && error !== null && 'terminal' in error && error.terminal === true;

export function createEscrowChains(options: EscrowChainsOptions): EscrowChains {
  const { key, now, log } = options;
  const reached = new Map<RailConfig, { chain: EscrowChain; rails: ProviderRail[] }>();
  // One account has one queue of transactions on a chain, whatever contracts they go to.
  const accounts = new Map<number, Promise<{ rpc: Rpc; outbox: Outbox }>>();

  function account(chainId: number, signal: AbortSignal) {
    const known = accounts.get(chainId);
    if (known !== undefined) return known;
    const opening = (async () => {
      const onDoubt = (host: string, doubt: string | undefined) =>
        log.warn(
          { chainId, host, doubt },
          doubt ? 'an RPC endpoint is not believed' : 'an RPC endpoint is believed again',
        );
      const rpc = await connectRpc({ urls: options.rpcUrls.get(chainId) ?? [], chainId, onDoubt }, signal);
      return { rpc, outbox: createOutbox({ rpc, key, store: options.store(chainId), now }) };
    })();
    accounts.set(chainId, opening);
    opening.catch(() => accounts.delete(chainId));
    return opening;
  }

  async function dial(config: RailConfig, signal: AbortSignal): Promise<void> {
    const { rpc, outbox } = await account(config.chainId, signal);
    const client = await connectEscrow({ rpc, escrow: config.escrow }, signal);
    const rails: ProviderRail[] = [];
    for (const token of config.tokens) {
      const { symbol, decimals, allowed } = await client.token(token, signal);
      if (!allowed) {
        log.warn(
          { chainId: config.chainId, token, symbol },
          'the escrow contract takes no new deposits in this token: left out',
        );
        continue;
      }
      rails.push({
        chainId: config.chainId,
        escrow: config.escrow,
        token,
        assetSymbol: symbol,
        decimals,
        networkId: client.networkId,
        payee: options.payee,
      });
    }
    reached.set(config, { chain: escrowChain(client, outbox), rails });
    log.info(
      { chainId: config.chainId, escrow: config.escrow, assets: rails.map((rail) => rail.assetSymbol) },
      'a chain is connected',
    );
  }

  const sameEscrow = (one: string, other: string) => one.toLowerCase() === other.toLowerCase();

  return {
    rails() {
      const missing = options.rails.find((config) => !reached.has(config));
      if (missing !== undefined && reached.size === 0) {
        throw new Refusal(503, `chain ${missing.chainId} does not answer yet: try again`, { retryAfterSeconds: 2 });
      }
      const rails = [...reached.values()].flatMap((one) => one.rails);
      if (rails.length === 0)
        throw new Refusal(503, 'no token is accepted on any chain now', { retryAfterSeconds: 30 });
      return rails;
    },
    chain: (chainId, escrow) =>
      [...reached.values()].find(({ chain }) => chain.chainId === chainId && sameEscrow(chain.escrow, escrow))?.chain,
    all: () => [...reached.values()].map(({ chain }) => chain),
    awaited: (chainId, escrow) =>
      options.rails.some(
        (config) => config.chainId === chainId && sameEscrow(config.escrow, escrow) && !reached.has(config),
      ),
    get connected() {
      return reached.size > 0;
    },
    async connect(signal) {
      await Promise.all(
        options.rails.map(async (config) => {
          while (!signal.aborted) {
            try {
              return await dial(config, signal);
            } catch (error) {
              if (signal.aborted) return;
              if (isTerminal(error)) throw error;
              log.warn({ chainId: config.chainId, error: (error as Error).message }, 'the chain is not reached yet');
              await sleep(redialSeconds * 1000, undefined, { signal }).catch(() => undefined);
            }
          }
        }),
      );
    },
  };
}

/** One contract and the account that sends to it, as the provider's controllers see them. */
export function escrowChain(client: EscrowClient, outbox: Outbox): EscrowChain {
  return {
    chainId: client.chainId,
    escrow: client.address,
    claimWindowSeconds: client.claimWindowSeconds,
    calls: client.calls,
    leases: (leaseIds, signal) => client.leases(leaseIds, 'latest', signal),
    async reads(leaseIds, signal) {
      // The block first, and then by its name: the node that is asked next may have another safe head.
      const head = await client.block('safe', signal);
      const [latest, safe] = await Promise.all([
        client.leases(leaseIds, 'latest', signal),
        client.leases(leaseIds, head, signal),
      ]);
      return leaseIds.map((_, at) => ({ latest: latest[at], safe: safe[at], safeBlockTime: head.timestamp }));
    },
    submit: (intent, signal) => outbox.submit(intent, signal),
    tick: (signal) => outbox.tick(signal),
    async inFlight(signal) {
      const entries = await outbox.entries(signal);
      return entries.filter(({ state }) => state === 'stored' || state === 'broadcast').map((entry) => entry.key);
    },
  };
}
