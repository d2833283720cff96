/**
 * Puts the contracts on a chain, once. What is there already (by the addresses of an earlier run) is kept; what is missing
 * or differs in a setting is made good. Each step is reported as soon as it is mined, so that a run that was cut off goes on.
 */
import { ContractFactory, getCreateAddress, Interface, id, Transaction, ZeroAddress, ZeroHash } from 'ethers';
import type { Address, Hex, Hex32 } from '../../api/messages.ts';
import { gpuToken } from '../../contracts/generated/gpu-token.ts';
import { leaseEscrow } from '../../contracts/generated/lease-escrow.ts';
import { mockUsdc } from '../../contracts/generated/mock-usdc.ts';
import { timelock as timelockController } from '../../contracts/generated/timelock.ts';
import { sameAddress } from '../../core/money/escrow.ts';
import type { ChainKey } from './key.ts';
import { decodeRefusal } from './refusal.ts';
import { NoContract, type Rpc, RpcError } from './rpc.ts';

export interface TokenChoice {
  readonly name: string;
  /** An address on this chain, or what to deploy: a mintable mock of USDC, or the network's own token. */
  readonly source: Address | 'mock' | 'gpu';
  readonly feeBps: number;
}

export interface DeployedToken {
  readonly address: Address;
  readonly decimals: number;
  readonly feeBps: number;
}

/** What other programs are configured with. Plain JSON. */
export interface Deployment {
  readonly chainId: number;
  readonly networkId: Hex32;
  readonly escrow: Address;
  readonly owner: Address;
  /** Named, and owner as soon as it accepts. */
  readonly pendingOwner?: Address;
  /** Through which the owner acts; then `owner` is its address too. */
  readonly timelock?: { readonly address: Address; readonly delaySeconds: number; readonly governor: Address };
  readonly feeRecipient: Address;
  readonly claimWindowSeconds: number;
  readonly tokens: Readonly<Record<string, DeployedToken>>;
  readonly deployedAtBlock: number;
}

export interface DeployOptions {
  readonly rpc: Rpc;
  readonly key: ChainKey;
  readonly tokens: readonly TokenChoice[];
  readonly claimWindowSeconds: number;
  readonly networkId?: Hex32;
  /** Default: the deploying account. Another one has to accept, unless a timelock stands between. */
  readonly owner?: Address;
  /** Puts a TimelockController in between: what the owner wants is public for so long before it can be done. */
  readonly timelockSeconds?: number;
  readonly feeRecipient?: Address;
  /** Result of an earlier run, whole or cut off. */
  readonly earlier?: Partial<Deployment>;
  /** Estimate and send nothing. */
  readonly dryRun?: boolean;
  readonly maxFeePerGasCap?: bigint;
  readonly report?: (step: DeployStep) => void | Promise<void>;
}

export interface DeployStep {
  readonly what: string;
  /** kept: was there. sent: is mined. planned: would be sent. */
  readonly outcome: 'kept' | 'sent' | 'planned';
  readonly address?: Address;
  readonly gas?: bigint;
  /** All that is known so far: to be stored, so that a later run goes on from here. */
  readonly deployment: Partial<Deployment>;
}

export interface DeployResult {
  readonly deployment: Deployment;
  readonly gasUsed: bigint;
  readonly transactions: number;
}

/** One network of escrows, tokens and providers, unless another name is given. */
export const defaultNetworkId = id('gpulease') as Hex32;
/** What the network's own token is made with: a billion. */
const gpuTokenSupply = 10n ** 27n;

const escrowAbi = new Interface(leaseEscrow.abi);
const tokenAbi = new Interface(gpuToken.abi);
const timelockAbi = new Interface(timelockController.abi);

/** The configuration cannot be carried out as it is. */
export class DeployError extends Error {
  override readonly name = 'DeployError';
  readonly terminal = true;
}

export async function deployContracts(options: DeployOptions, signal?: AbortSignal): Promise<DeployResult> {
  const { rpc, key } = options;
  const networkId = options.networkId ?? defaultNetworkId;
  const governor = options.owner ?? key.address;
  const feeRecipient = options.feeRecipient ?? governor;
  const sender = createSender(options, signal);
  let known: Partial<Deployment> = options.earlier?.chainId === rpc.chainId ? options.earlier : {};
  const report = async (step: Omit<DeployStep, 'deployment'>) => options.report?.({ ...step, deployment: known });

  const hasCode = async (address: Address | undefined) =>
    address !== undefined && (await rpc.call<Hex>('eth_getCode', [address, 'latest'], signal)) !== '0x';

  async function create(
    what: string,
    contract: { abi: readonly unknown[]; bytecode: string },
    args: readonly unknown[],
  ) {
    const factory = new ContractFactory(
      contract.abi as ConstructorParameters<typeof ContractFactory>[0],
      contract.bytecode,
    );
    const { data } = await factory.getDeployTransaction(...args);
    return sender.send({ what, data: data as Hex });
  }

  // The escrow.
  let escrow = known.escrow;
  if (await hasCode(escrow)) {
    const [there] = await readAt(escrowAbi, escrow!, 'networkId', []);
    if (there !== networkId)
      throw new DeployError(`the escrow at ${escrow} is of network ${there}, not ${networkId}: name another file`);
    // Its settings cannot be changed; what it says counts, not what was asked for now.
    const [ownerThere, recipientThere, windowThere] = await Promise.all(
      ['owner', 'feeRecipient', 'claimWindow'].map(async (name) => (await readAt(escrowAbi, escrow!, name, []))[0]),
    );
    known = {
      ...known,
      networkId,
      owner: ownerThere,
      feeRecipient: recipientThere,
      claimWindowSeconds: Number(windowThere),
    };
    await report({ what: 'LeaseEscrow', outcome: 'kept', address: escrow! });
  } else {
    // Ours until its tokens are allowed; then it is handed over.
    const settings = [networkId, key.address, feeRecipient, options.claimWindowSeconds];
    const made = await create('LeaseEscrow', leaseEscrow, settings);
    escrow = made.address;
    known = {
      ...known,
      chainId: rpc.chainId,
      networkId,
      owner: key.address,
      feeRecipient,
      claimWindowSeconds: options.claimWindowSeconds,
      escrow,
      deployedAtBlock: made.blockNumber,
      tokens: known.tokens ?? {},
    };
    await report({ what: 'LeaseEscrow', outcome: made.outcome, address: escrow, gas: made.gas });
  }

  // The tokens, and their rules in the escrow.
  for (const choice of options.tokens) {
    const before = known.tokens?.[choice.name]?.address;
    let address = choice.source === 'mock' || choice.source === 'gpu' ? before : choice.source;
    let decimals = choice.source === 'mock' ? 6 : 18;
    if (await hasCode(address)) {
      decimals = Number((await readAt(tokenAbi, address!, 'decimals', []))[0]);
      await report({ what: choice.name, outcome: 'kept', address: address! });
    } else if (choice.source === 'mock' || choice.source === 'gpu') {
      const made =
        choice.source === 'mock'
          ? await create(choice.name, mockUsdc, [])
          : await create(choice.name, gpuToken, [governor, gpuTokenSupply]);
      address = made.address;
      known = { ...known, tokens: { ...known.tokens, [choice.name]: { address, decimals, feeBps: choice.feeBps } } };
      await report({ what: choice.name, outcome: made.outcome, address, gas: made.gas });
    } else {
      throw new NoContract(
        `there is no token at ${choice.source} on chain ${rpc.chainId}: correct the address of ${choice.name}`,
      );
    }

    known = {
      ...known,
      tokens: { ...known.tokens, [choice.name]: { address: address!, decimals, feeBps: choice.feeBps } },
    };
    const what = `rule of ${choice.name}`;
    const rule = (await hasCode(escrow)) ? (await readAt(escrowAbi, escrow!, 'tokenRule', [address]))[0] : undefined;
    if (rule?.allowed && Number(rule.feeBps) === choice.feeBps) {
      await report({ what, outcome: 'kept' });
    } else {
      const data = escrowAbi.encodeFunctionData('setToken', [address, true, choice.feeBps]) as Hex;
      const made = await sender.send({ what, to: escrow!, data });
      await report({ what, outcome: made.outcome, gas: made.gas });
    }
  }

  if (options.timelockSeconds !== undefined) await handToTimelock(escrow!, options.timelockSeconds);
  else if (!sameAddress(governor, key.address)) await nameOwner(escrow!, governor);
  return { deployment: known as Deployment, gasUsed: sender.gasUsed(), transactions: sender.transactions() };

  async function ownersOf(address: Address): Promise<{ owner: Address; pending: Address }> {
    // In a dry run there is none yet.
    if (!(await hasCode(address))) return { owner: key.address, pending: ZeroAddress as Address };
    const [owner, pending] = await Promise.all(
      ['owner', 'pendingOwner'].map(async (name) => (await readAt(escrowAbi, address, name, []))[0] as Address),
    );
    return { owner: owner!, pending: pending! };
  }

  /** True when it was sent or planned now, false when it had been before. */
  async function nameOwner(address: Address, next: Address): Promise<boolean> {
    const { owner, pending } = await ownersOf(address);
    const what = 'owner';
    if (sameAddress(owner, next) || sameAddress(pending, next)) {
      if (!sameAddress(owner, next)) known = { ...known, pendingOwner: next };
      await report({ what, outcome: 'kept', address: next });
      return false;
    }
    if (!sameAddress(owner, key.address)) {
      throw new DeployError(`the escrow's owner is ${owner}, and only that account can hand it over to ${next}`);
    }
    const data = escrowAbi.encodeFunctionData('transferOwnership', [next]) as Hex;
    const made = await sender.send({ what, to: address, data });
    known = { ...known, pendingOwner: next };
    await report({ what, outcome: made.outcome, address: next, gas: made.gas });
    return true;
  }

  /**
   * A timelock without delay accepts the escrow, passes from us to the governor, and gives itself its delay, all in one
   * batch. Whatever is cut off before that leaves the escrow ours; afterwards nobody is faster than the delay.
   */
  async function handToTimelock(address: Address, delaySeconds: number): Promise<void> {
    let at = known.timelock?.address;
    if (await hasCode(at)) {
      const { owner } = await ownersOf(address);
      await report({ what: 'timelock', outcome: 'kept', address: at! });
      // Its delay is its own business by now: what it says counts, not what was asked for.
      if (sameAddress(owner, at!)) {
        const [minDelay] = await readAt(timelockAbi, at!, 'getMinDelay', []);
        known = { ...known, owner, timelock: { ...known.timelock!, delaySeconds: Number(minDelay) } };
        return;
      }
    } else {
      const made = await create('timelock', timelockController, [0, [key.address], [ZeroAddress], ZeroAddress]);
      at = made.address;
      known = { ...known, timelock: { address: at, delaySeconds, governor } };
      await report({ what: 'timelock', outcome: made.outcome, address: at, gas: made.gas });
    }
    await nameOwner(address, at!);

    const role = (name: string) => id(`${name}_ROLE`);
    const own: Hex[] = [];
    if (!sameAddress(governor, key.address)) {
      for (const name of ['PROPOSER', 'CANCELLER']) {
        own.push(timelockAbi.encodeFunctionData('grantRole', [role(name), governor]) as Hex);
        own.push(timelockAbi.encodeFunctionData('revokeRole', [role(name), key.address]) as Hex);
      }
    }
    own.push(timelockAbi.encodeFunctionData('updateDelay', [delaySeconds]) as Hex);
    const payloads = [escrowAbi.encodeFunctionData('acceptOwnership', []) as Hex, ...own];
    const batch = [[address, ...own.map(() => at!)], payloads.map(() => 0), payloads, ZeroHash, ZeroHash];
    const there = await hasCode(at);
    const operation = there ? (await readAt(timelockAbi, at!, 'hashOperationBatch', batch))[0] : ZeroHash;
    const isKnown = there && (await readAt(timelockAbi, at!, 'isOperation', [operation]))[0];
    if (!isKnown) {
      const data = timelockAbi.encodeFunctionData('scheduleBatch', [...batch, 0]) as Hex;
      const made = await sender.send({ what: 'handover', to: at!, data });
      await report({ what: 'handover', outcome: made.outcome, gas: made.gas });
    }
    const data = timelockAbi.encodeFunctionData('executeBatch', batch) as Hex;
    const made = await sender.send({ what: 'handover', to: at!, data });
    const { pendingOwner: _, ...rest } = known;
    known = { ...rest, owner: at!, timelock: { address: at!, delaySeconds, governor } };
    await report({ what: 'owner', outcome: made.outcome, address: at!, gas: made.gas });
  }

  async function readAt(abi: Interface, to: Address, method: string, args: readonly unknown[]) {
    const data = abi.encodeFunctionData(method, args) as Hex;
    return abi.decodeFunctionResult(method, await rpc.contractCall({ to, data }, 'latest', signal));
  }
}

interface Sent {
  readonly outcome: 'sent' | 'planned';
  readonly address: Address;
  readonly gas: bigint;
  readonly blockNumber: number;
}

function createSender(options: DeployOptions, signal?: AbortSignal) {
  const { rpc, key } = options;
  let gasUsed = 0n;
  let transactions = 0;
  let plannedNonce: number | undefined;

  async function send(request: { what: string; to?: Address; data: Hex }): Promise<Sent> {
    const { what, to, data } = request;
    const nonce =
      plannedNonce ?? Number(await rpc.call<Hex>('eth_getTransactionCount', [key.address, 'latest'], signal));
    const address = getCreateAddress({ from: key.address, nonce }) as Address;
    transactions += 1;
    let gas: bigint;
    try {
      gas = BigInt(await rpc.call<Hex>('eth_estimateGas', [{ from: key.address, to, data }], signal));
    } catch (error) {
      const refusal = decodeRefusal(error);
      if (refusal) throw new DeployError(`${what}: ${refusal.message}`);
      if (error instanceof RpcError) throw new DeployError(`${what}: ${error.message}`);
      throw error;
    }
    if (options.dryRun) {
      // In a dry run the escrow does not exist, so a call to it is estimated against an empty address.
      plannedNonce = nonce + 1;
      gasUsed += gas;
      return { outcome: 'planned', address, gas, blockNumber: 0 };
    }

    const block = await rpc.call<{ baseFeePerGas?: Hex }>('eth_getBlockByNumber', ['latest', false], signal);
    const priority = BigInt(await rpc.call<Hex>('eth_maxPriorityFeePerGas', [], signal));
    const maxFeePerGas = BigInt(block.baseFeePerGas ?? '0x0') * 2n + priority;
    const cap = options.maxFeePerGasCap;
    if (cap !== undefined && maxFeePerGas > cap) {
      throw new DeployError(
        `gas costs ${maxFeePerGas} wei now, above the limit of ${cap}: try later, or raise the limit`,
      );
    }
    const raw = await key.signTransaction({
      type: 2,
      chainId: rpc.chainId,
      nonce,
      to: to ?? null,
      data,
      value: 0n,
      gasLimit: (gas * 13n) / 10n,
      maxFeePerGas,
      maxPriorityFeePerGas: priority,
    });
    const hash = Transaction.from(raw).hash as Hex32;
    try {
      await rpc.call('eth_sendRawTransaction', [raw], signal);
    } catch (error) {
      if (!(error instanceof RpcError)) throw error;
      throw new DeployError(`${what}: the node refused the transaction: ${error.message}`);
    }
    const receipt = await mined(hash, what);
    gasUsed += BigInt(receipt.gasUsed);
    return { outcome: 'sent', address, gas: BigInt(receipt.gasUsed), blockNumber: Number(receipt.blockNumber) };
  }

  async function mined(hash: Hex32, what: string): Promise<{ gasUsed: Hex; blockNumber: Hex; status: Hex }> {
    for (let waited = 0; waited < 600; waited++) {
      const receipt = await rpc.call<{ gasUsed: Hex; blockNumber: Hex; status: Hex } | null>(
        'eth_getTransactionReceipt',
        [hash],
        signal,
      );
      if (receipt) {
        if (Number(receipt.status) !== 1) throw new DeployError(`${what}: transaction ${hash} reverted`);
        return receipt;
      }
      await new Promise((resolve) => setTimeout(resolve, Math.min(1000, 50 * (waited + 1))));
      signal?.throwIfAborted();
    }
    throw new DeployError(`${what}: transaction ${hash} was not mined in ten minutes; run again to go on when it is`);
  }

  return { send, gasUsed: () => gasUsed, transactions: () => transactions };
}
