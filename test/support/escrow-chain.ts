/** A local chain with the contracts on it, people with keys and tokens, and quotes that fit: what chain tests start from. */
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Interface, keccak256, Transaction, toBeHex, ZeroAddress, ZeroHash } from 'ethers';
import { type Deployment, deployContracts } from '../../operator/adapters/chain/deploy.ts';
import { type Call, connectEscrow, type EscrowClient } from '../../operator/adapters/chain/escrow-client.ts';
import { type ChainKey, keyFromHex } from '../../operator/adapters/chain/key.ts';
import { connectRpc, type Rpc } from '../../operator/adapters/chain/rpc.ts';
import type { Address, Hex, Hex32, Quote } from '../../operator/api/messages.ts';
import { type Anvil, type AnvilOptions, startAnvil } from '../../operator/sandbox/chain/anvil.ts';

export type Role =
  | 'deployer'
  | 'consumer'
  | 'provider'
  | 'session'
  | 'referrer'
  | 'feeRecipient'
  | 'stranger'
  | 'payee';
const roles: readonly Role[] = [
  'deployer',
  'consumer',
  'provider',
  'session',
  'referrer',
  'feeRecipient',
  'stranger',
  'payee',
];

export interface TestReceipt {
  readonly status: number;
  readonly gasUsed: bigint;
  readonly blockNumber: number;
}

export interface EscrowChain {
  readonly anvil: Anvil;
  readonly rpc: Rpc;
  readonly client: EscrowClient;
  readonly deployment: Deployment;
  readonly keys: Readonly<Record<Role, ChainKey>>;
  readonly usdc: Address;
  readonly gpu: Address;
  /** Signs, sends, mines. A revert is a receipt of status 0; nothing is estimated. */
  send(key: ChainKey, call: Call): Promise<TestReceipt>;
  /** A quote by `provider` for `consumer`, of a fresh leaseRef, good for an hour of the chain's time. */
  quote(changes?: Partial<Quote>): Promise<Quote>;
  now(): Promise<number>;
  /** The next block is at least this many seconds later. */
  pass(seconds: number): Promise<void>;
  stop(): Promise<void>;
}

const mintAbi = new Interface([
  'function mint(address to, uint256 amount)',
  'function transfer(address to, uint256 amount)',
]);

export async function startEscrowChain(
  options: Partial<AnvilOptions> & { claimWindowSeconds?: number } = {},
): Promise<EscrowChain> {
  const { claimWindowSeconds = 600, ...anvilOptions } = options;
  const dir = await mkdtemp(join(tmpdir(), 'gpulease-chain-'));
  const anvil = await startAnvil({ dir, report: () => undefined, ...anvilOptions });
  const rpc = await connectRpc({ urls: [anvil.rpcUrl], chainId: anvil.chainId });
  const keys = Object.fromEntries(
    roles.map((role, index) => [role, keyFromHex(anvil.accounts[index]!.privateKey)]),
  ) as Record<Role, ChainKey>;

  const { deployment } = await deployContracts({
    rpc,
    key: keys.deployer,
    tokens: [
      { name: 'USDC', source: 'mock', feeBps: 200 },
      { name: 'GPU', source: 'gpu', feeBps: 0 },
    ],
    claimWindowSeconds,
    feeRecipient: keys.feeRecipient.address,
  });
  const client = await connectEscrow({ rpc, escrow: deployment.escrow });
  const usdc = deployment.tokens.USDC!.address;
  const gpu = deployment.tokens.GPU!.address;

  async function send(key: ChainKey, call: Call): Promise<TestReceipt> {
    const nonce = Number(await rpc.call<Hex>('eth_getTransactionCount', [key.address, 'pending']));
    const raw = await key.signTransaction({
      type: 2,
      chainId: anvil.chainId,
      nonce,
      to: call.to,
      data: call.data,
      value: 0n,
      gasLimit: 2_000_000n,
      maxFeePerGas: 100_000_000_000n,
      maxPriorityFeePerGas: 1n,
    });
    await rpc.call('eth_sendRawTransaction', [raw]);
    const hash = Transaction.from(raw).hash;
    for (;;) {
      const receipt = await rpc.call<{ status: Hex; gasUsed: Hex; blockNumber: Hex } | null>(
        'eth_getTransactionReceipt',
        [hash],
      );
      if (receipt) {
        return {
          status: Number(receipt.status),
          gasUsed: BigInt(receipt.gasUsed),
          blockNumber: Number(receipt.blockNumber),
        };
      }
      await new Promise((resolve) => setTimeout(resolve, 20));
    }
  }

  const now = async () => (await client.block()).timestamp;
  let quotes = 0;

  const mint = mintAbi.encodeFunctionData('mint', [keys.consumer.address, 10n ** 15n]) as Hex;
  await send(keys.deployer, { to: usdc, data: mint });
  const give = mintAbi.encodeFunctionData('transfer', [keys.consumer.address, 10n ** 24n]) as Hex;
  await send(keys.deployer, { to: gpu, data: give });

  return {
    anvil,
    rpc,
    client,
    deployment,
    keys,
    usdc,
    gpu,
    send,
    now,
    async quote(changes = {}) {
      quotes += 1;
      return {
        networkId: client.networkId,
        provider: keys.provider.address,
        payee: keys.provider.address,
        consumer: keys.consumer.address,
        leaseRef: keccak256(toBeHex(quotes, 32)) as Hex32,
        token: usdc,
        pricePerGpuHour: 340_000n,
        gpus: 1,
        minSeconds: 60,
        maxSeconds: 3600,
        startTimeoutSeconds: 300,
        graceSeconds: 600,
        capacityType: 0,
        specHash: ZeroHash as Hex32,
        saltCommit: ZeroHash as Hex32,
        referrer: ZeroAddress as Address,
        referrerBps: 0,
        expiresAt: (await now()) + 3600,
        nonce: BigInt(quotes),
        ...changes,
      };
    },
    async pass(seconds) {
      await anvil.rpc('evm_increaseTime', seconds);
      await anvil.rpc('evm_mine');
    },
    async stop() {
      await anvil.stop();
      await rm(dir, { recursive: true, force: true });
    },
  };
}
