/** The wallet, in a process of its own or in the operator's: for each chain one outbox, behind the wallet's own judgement. */
import type { TokenInfo } from '../adapters/chain/escrow-client.ts';
import { type DayLimits, dayLimit, guardedOutbox } from '../adapters/chain/guarded-outbox.ts';
import type { ChainKey } from '../adapters/chain/key.ts';
import { createOutbox, type Outbox, type OutboxFaults, type OutboxRecord } from '../adapters/chain/outbox.ts';
import { connectRpc, type Rpc } from '../adapters/chain/rpc.ts';
import { createSecretStore } from '../adapters/kube/secret-store.ts';
import type { WalletRules } from '../core/wallet/judge.ts';
import type { Cluster, Log } from '../engine/types.ts';
import { UsageError } from './options.ts';

export interface ChainConnection {
  readonly chainId: number;
  /** Connects when first needed; throws WrongChain or ChainUnavailable. */
  rpc(signal?: AbortSignal): Promise<Rpc>;
}

export function chainConnection(chainId: number, urls: readonly string[], log: Log): ChainConnection {
  let rpc: Promise<Rpc> | undefined;
  const onDoubt = (host: string, doubt: string | undefined) =>
    log.warn({ chainId, host, doubt }, doubt ? 'an RPC endpoint is not believed' : 'an RPC endpoint is believed again');
  return {
    chainId,
    rpc(signal) {
      rpc ??= connectRpc({ urls, chainId, onDoubt }, signal).catch((error) => {
        rpc = undefined; // Ask again next time: an RPC that is down now may answer later.
        throw error;
      });
      return rpc;
    },
  };
}

export interface WalletChain extends ChainConnection {
  outbox(signal?: AbortSignal): Promise<Outbox>;
  /** Looks after what was stored, once the chain has been reached. */
  tick(signal?: AbortSignal): Promise<void>;
}

export interface WalletPartOptions {
  readonly cluster: Cluster;
  readonly namespace: string;
  readonly key: ChainKey;
  /** As given: ID=URL[,URL]. */
  readonly chains: readonly (readonly [string, string])[];
  readonly rules: WalletRules;
  readonly limits: DayLimits;
  readonly now: () => Date;
  readonly log: Log;
  readonly faults?: OutboxFaults;
}

export function walletPart(options: WalletPartOptions): ReadonlyMap<number, WalletChain> {
  return new Map(
    options.chains.map(([id, urls]) => [
      chainIdOf(id),
      walletChain(options, chainConnection(chainIdOf(id), urls.split(','), options.log)),
    ]),
  );
}

function walletChain(options: WalletPartOptions, connection: ChainConnection): WalletChain {
  const { cluster, namespace, key, rules, limits } = options;
  const { chainId } = connection;
  const limited = limits.amounts !== undefined || limits.transactions !== undefined;
  let outbox: Outbox | undefined;
  return {
    ...connection,
    async outbox(signal) {
      const rpc = await connection.rpc(signal);
      const tokens = new Map<string, TokenInfo>();
      outbox ??= guardedOutbox({
        rpc,
        rules,
        tokens,
        outbox: createOutbox({
          rpc,
          key,
          store: createSecretStore<OutboxRecord>({
            cluster,
            namespace,
            name: `outbox-${chainId}-${key.address.slice(2, 12).toLowerCase()}`,
          }),
          now: options.now,
          faults: options.faults,
          ...(limited && { limit: dayLimit(limits, tokens) }),
        }),
      });
      return outbox;
    },
    async tick(signal) {
      await outbox?.tick(signal);
    },
  };
}

export function chainIdOf(text: string, flag = 'chain'): number {
  const id = Number(text);
  if (!Number.isSafeInteger(id) || id < 1)
    throw new UsageError(`--${flag} must begin with a chain id, e.g. 42161=…; given: ${text}`);
  return id;
}
