/** The chain of the test: anvil as a pod of the consumer's cluster, and the contracts on it. */
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { Interface } from 'ethers';
import { dump } from 'js-yaml';
import { type Deployment, deployContracts } from '../../operator/adapters/chain/deploy.ts';
import { connectEscrow, type EscrowClient } from '../../operator/adapters/chain/escrow-client.ts';
import { keyFromHex } from '../../operator/adapters/chain/key.ts';
import { connectRpc } from '../../operator/adapters/chain/rpc.ts';
import type { Address, Hex32 } from '../../operator/api/messages.ts';
import { leaseEscrow } from '../../operator/contracts/generated/lease-escrow.ts';
import { mockUsdc } from '../../operator/contracts/generated/mock-usdc.ts';
import { type Escrow, heldIn } from '../../operator/core/money/escrow.ts';
import { devAccounts, WELL_KNOWN_MNEMONIC } from '../../operator/sandbox/chain/anvil.ts';
import { ANVIL_IMAGE } from '../../operator/sandbox/kind/anvil-image.ts';
import type { KindCluster } from '../../operator/sandbox/kind/pair.ts';
import { until } from '../../operator/sandbox/scenario.ts';

export const CHAIN_ID = 31337;
export const CHAIN_NODE_PORT = 30545;
const CLAIM_WINDOW_SECONDS = 30;
/** Accounts of the well-known mnemonic: play money. */
const account = (role: 'deployer' | 'wallet' | 'provider' | 'feeRecipient') =>
  devAccounts(4)[{ deployer: 0, wallet: 1, provider: 2, feeRecipient: 3 }[role]]!;

export interface Chain {
  /** For this machine; pods of the consumer's cluster use its Service. */
  readonly rpcUrl: string;
  readonly inCluster: string;
  readonly deployment: Deployment;
  readonly walletKey: string;
  readonly providerKey: string;
  readonly provider: Address;
  readonly escrows: EscrowClient;
  /** Every escrow that was ever opened. */
  all(): Promise<readonly Escrow[]>;
}

/** Contracts that are known from an earlier run on the same chain (`file`) are kept. */
export async function startChain(cluster: KindCluster, file: string, signal?: AbortSignal): Promise<Chain> {
  await cluster.kubectl(['apply', '-f', '-'], { input: manifests() });
  await cluster.kubectl(['-n', 'chain', 'rollout', 'status', 'deployment/anvil', '--timeout=180s'], {
    timeoutSeconds: 200,
  });
  const rpcUrl = `http://${cluster.nodeIp}:${CHAIN_NODE_PORT}`;
  const rpc = <T>(method: string, ...params: unknown[]) => call<T>(rpcUrl, method, params);
  await until(
    'anvil answering at the port of its node',
    60,
    () =>
      rpc<string>('eth_chainId').then(
        (id) => Number(id) === CHAIN_ID || undefined,
        () => undefined,
      ),
    signal,
  );
  const connected = await connectRpc({ urls: [rpcUrl], chainId: CHAIN_ID }, signal);
  const { deployment } = await deployContracts(
    {
      rpc: connected,
      key: keyFromHex(account('deployer').privateKey),
      earlier: existsSync(file) ? JSON.parse(readFileSync(file, 'utf8')) : undefined,
      claimWindowSeconds: CLAIM_WINDOW_SECONDS,
      feeRecipient: account('feeRecipient').address as Address,
      tokens: [{ name: 'USDC', source: 'mock', feeBps: 200 }],
    },
    signal,
  );
  writeFileSync(file, JSON.stringify(deployment));
  await rpc('eth_sendTransaction', {
    from: account('deployer').address,
    to: deployment.tokens.USDC!.address,
    data: new Interface(mockUsdc.abi).encodeFunctionData('mint', [account('wallet').address, 1_000_000000n]),
  });
  const escrows = await connectEscrow({ rpcUrls: [rpcUrl], chainId: CHAIN_ID, escrow: deployment.escrow });
  const opened = new Interface(leaseEscrow.abi).getEvent('LeaseOpened')!.topicHash;
  return {
    rpcUrl,
    inCluster: 'http://anvil.chain.svc:8545',
    deployment,
    walletKey: account('wallet').privateKey,
    providerKey: account('provider').privateKey,
    provider: account('provider').address as Address,
    escrows,
    async all() {
      const query = { address: deployment.escrow, topics: [opened], fromBlock: '0x0', toBlock: 'latest' };
      const logs = await rpc<{ topics: string[] }[]>('eth_getLogs', query);
      const ids = logs.map((log) => log.topics[1] as Hex32);
      return (await escrows.leases(ids)).map((escrow, at) => {
        if (!escrow) throw new Error(`escrow ${ids[at]} was opened and is not there`);
        return escrow;
      });
    },
  };
}

/** Throws unless every escrow is closed, what each holds is nothing, and the contract's own sums agree. */
export async function nothingHeld(
  chain: Chain,
): Promise<{ escrows: number; paid: bigint; fee: bigint; refunded: bigint }> {
  const all = await chain.all();
  if (all.length === 0) throw new Error('no escrow was ever opened: nothing is proven');
  for (const escrow of all)
    if (!escrow.closed || heldIn(escrow) !== 0n)
      throw new Error(`escrow ${escrow.leaseId} is not settled: it holds ${heldIn(escrow)}`);
  const { deposited, paid, fee, refunded, held } = await chain.escrows.totals(chain.deployment.tokens.USDC!.address);
  if (held !== 0n) throw new Error(`the contract still holds ${held}`);
  if (deposited !== paid + fee + refunded)
    throw new Error(`deposited ${deposited} is not ${paid} + ${fee} + ${refunded}`);
  return { escrows: all.length, paid, fee, refunded };
}

const manifests = () =>
  [
    { apiVersion: 'v1', kind: 'Namespace', metadata: { name: 'chain' } },
    {
      apiVersion: 'apps/v1',
      kind: 'Deployment',
      metadata: { name: 'anvil', namespace: 'chain' },
      spec: {
        replicas: 1,
        selector: { matchLabels: { app: 'anvil' } },
        template: {
          metadata: { labels: { app: 'anvil' } },
          spec: {
            containers: [
              {
                name: 'anvil',
                image: ANVIL_IMAGE,
                imagePullPolicy: 'Never',
                env: [{ name: 'HOME', value: '/tmp' }],
                args: [
                  ...['--host=0.0.0.0', '--port=8545', `--chain-id=${CHAIN_ID}`, `--mnemonic=${WELL_KNOWN_MNEMONIC}`],
                  ...['--slots-in-an-epoch=4', '--block-time=1', '--mixed-mining', '--silent'],
                ],
                readinessProbe: { tcpSocket: { port: 8545 }, periodSeconds: 1 },
              },
            ],
          },
        },
      },
    },
    {
      apiVersion: 'v1',
      kind: 'Service',
      metadata: { name: 'anvil', namespace: 'chain' },
      spec: {
        type: 'NodePort',
        selector: { app: 'anvil' },
        ports: [{ port: 8545, targetPort: 8545, nodePort: CHAIN_NODE_PORT }],
      },
    },
  ]
    .map((object) => dump(object))
    .join('---\n');

async function call<T>(url: string, method: string, params: readonly unknown[]): Promise<T> {
  const response = await fetch(url, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify({ jsonrpc: '2.0', id: 1, method, params }),
    signal: AbortSignal.timeout(15_000),
  });
  const answer = (await response.json()) as { result?: T; error?: { message: string } };
  if (answer.error) throw new Error(`${method}: ${answer.error.message}`);
  return answer.result as T;
}
