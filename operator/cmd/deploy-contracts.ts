#!/usr/bin/env node
/** Deploys LeaseEscrow, and where asked the tokens, to any EVM chain; writes their addresses. Safe to repeat. */
import { readFile, rename, writeFile } from 'node:fs/promises';
import { parseArgs } from 'node:util';
import {
  DeployError,
  type Deployment,
  defaultNetworkId,
  deployContracts,
  type TokenChoice,
} from '../adapters/chain/deploy.ts';
import { loadKey } from '../adapters/chain/key.ts';
import { connectRpc } from '../adapters/chain/rpc.ts';
import { verifyDeployment } from '../adapters/chain/verify.ts';
import type { Address, Hex32 } from '../api/messages.ts';

const help = `Deploys the contracts of gpulease to a chain and writes their addresses.

  npm run deploy-contracts -- --rpc-url URL --key-file FILE [options]

  --rpc-url URL                 JSON-RPC endpoint; may be given several times
  --key-file FILE               private key (32 bytes in hexadecimal) or keystore of the account that pays and owns
  --password-file FILE          password of the keystore
  --out FILE                    addresses as JSON (default: addresses.json). If it names contracts that exist, they are kept
  --claim-window-seconds N      how long a provider can settle after the clock stopped (default: 86400)
  --owner ADDRESS               may allow tokens and pause new escrows (default: the deploying account). Another account has
                                to accept: acceptOwnership()
  --timelock-seconds N          puts a TimelockController between owner and escrow: what the owner wants to change is public
                                for so long before it can be. 172800 is two days. Nobody has to accept then
  --fee-recipient ADDRESS       receives the platform fee (default: the owner)
  --network-id HEX32            default: keccak256("gpulease")
  --tokens NAME=SOURCE[@BPS],…  tokens to allow, with their fee in 1/10000. SOURCE is the token's address; or "mock", a
                                stablecoin that anyone can mint; or "gpu", the network's own token, minted to the owner.
                                Default on a local chain (id 31337): USDC=mock@200,GPU=gpu@0. Elsewhere it must be given
  --max-fee-gwei N              refuse to send while a unit of gas costs more
  --dry-run                     estimate, send nothing
  --verify                      compare what --out says with the chain: code, owner, timelock, rules. Sends nothing, needs no key
  --standard-json FILE          write the compiler's input, which explorers verify the contracts by, and do nothing else
  --help

Example: npm run deploy-contracts -- --rpc-url http://127.0.0.1:8545 --key-file ./deployer.key --claim-window-seconds 60
`;

const localChainId = 31337;

async function main(): Promise<void> {
  const { values } = parseArgs({
    options: {
      'rpc-url': { type: 'string', multiple: true },
      'key-file': { type: 'string' },
      'password-file': { type: 'string' },
      out: { type: 'string', default: 'addresses.json' },
      'claim-window-seconds': { type: 'string', default: '86400' },
      owner: { type: 'string' },
      'timelock-seconds': { type: 'string' },
      'fee-recipient': { type: 'string' },
      'network-id': { type: 'string' },
      tokens: { type: 'string' },
      'max-fee-gwei': { type: 'string' },
      'dry-run': { type: 'boolean', default: false },
      verify: { type: 'boolean', default: false },
      'standard-json': { type: 'string' },
      help: { type: 'boolean', default: false },
    },
  });
  if (values.help) {
    process.stdout.write(help);
    return;
  }
  if (values['standard-json']) {
    const { standardInput } = await import('../contracts/generate.ts');
    await writeFile(values['standard-json'], await standardInput());
    return;
  }
  const urls = values['rpc-url'] ?? [];
  if (urls.length === 0) throw new DeployError('name the chain: --rpc-url URL');
  if (values.verify) {
    await verify(urls, values.out);
    return;
  }
  if (!values['key-file']) throw new DeployError('name the account that pays: --key-file FILE');
  const password = values['password-file'] && (await readFile(values['password-file'], 'utf8')).trim();
  const key = await loadKey(values['key-file'], password);
  const chainId = await chainIdOf(urls[0]!);
  const rpc = await connectRpc({ urls, chainId });
  const tokens = tokensOf(values.tokens, chainId);
  const earlier = await readEarlier(values.out);

  const { deployment, gasUsed, transactions } = await deployContracts({
    rpc,
    key,
    tokens,
    claimWindowSeconds: integer('--claim-window-seconds', values['claim-window-seconds'], 1, 2_592_000),
    owner: address('--owner', values.owner),
    timelockSeconds: values['timelock-seconds']
      ? integer('--timelock-seconds', values['timelock-seconds'], 60, 2_592_000)
      : undefined,
    feeRecipient: address('--fee-recipient', values['fee-recipient']),
    networkId: networkIdOf(values['network-id']),
    maxFeePerGasCap: values['max-fee-gwei']
      ? BigInt(integer('--max-fee-gwei', values['max-fee-gwei'], 1, 1e9)) * 10n ** 9n
      : undefined,
    dryRun: values['dry-run'],
    earlier,
    async report(step) {
      const gas = step.gas === undefined ? '' : `  ${step.gas} gas`;
      process.stderr.write(`${step.outcome.padEnd(8)}${step.what.padEnd(16)}${step.address ?? ''}${gas}\n`);
      if (step.outcome === 'sent') await writeWhole(values.out, step.deployment);
    },
  });
  process.stderr.write(`${transactions} transactions, ${gasUsed} gas, chain ${chainId}, account ${key.address}\n`);
  if (!values['dry-run']) await writeWhole(values.out, deployment);
  process.stdout.write(`${JSON.stringify(deployment)}\n`);
}

async function verify(urls: readonly string[], file: string): Promise<void> {
  const deployment = await readEarlier(file);
  if (!deployment?.escrow) throw new DeployError(`${file} names no escrow: name the addresses to verify with --out`);
  const rpc = await connectRpc({ urls, chainId: await chainIdOf(urls[0]!) });
  if (deployment.chainId !== rpc.chainId)
    throw new DeployError(`${file} is of chain ${deployment.chainId}, the endpoint serves chain ${rpc.chainId}`);
  const results = await verifyDeployment(rpc, deployment as Deployment);
  for (const { what, ok, found } of results) {
    process.stderr.write(`${(ok ? 'right' : 'WRONG').padEnd(8)}${what.padEnd(24)}${found}\n`);
  }
  process.stdout.write(`${JSON.stringify(results)}\n`);
  if (results.some(({ ok }) => !ok)) process.exitCode = 1;
}

/** The chain is what the endpoint says; a later client checks that it stays so. */
async function chainIdOf(url: string): Promise<number> {
  const body = JSON.stringify({ jsonrpc: '2.0', id: 1, method: 'eth_chainId', params: [] });
  try {
    const headers = { 'content-type': 'application/json' };
    const response = await fetch(url, { method: 'POST', headers, body, signal: AbortSignal.timeout(10_000) });
    const chainId = Number(((await response.json()) as { result?: string }).result);
    if (!Number.isSafeInteger(chainId) || chainId < 1) throw new Error('no chain id');
    return chainId;
  } catch {
    throw new DeployError(
      `no JSON-RPC endpoint answers at ${URL.canParse(url) ? new URL(url).host : 'that URL'}: check --rpc-url`,
    );
  }
}

function tokensOf(text: string | undefined, chainId: number): readonly TokenChoice[] {
  if (text === undefined && chainId !== localChainId) {
    throw new DeployError(
      `chain ${chainId} is not a local one: name the tokens that may be paid with, e.g. --tokens USDC=0x…@200`,
    );
  }
  const choices = (text ?? 'USDC=mock@200,GPU=gpu@0').split(',').map((part): TokenChoice => {
    const match = /^([A-Za-z0-9]{1,12})=(mock|gpu|0x[0-9a-fA-F]{40})(?:@([0-9]{1,3}))?$/.exec(part.trim());
    if (!match) throw new DeployError(`--tokens: ${JSON.stringify(part)} is not NAME=SOURCE[@BPS]`);
    const feeBps = Number(match[3] ?? (match[2] === 'gpu' ? '0' : '200'));
    if (feeBps > 500) throw new DeployError(`--tokens: the fee of ${match[1]} is ${feeBps}, the contract's cap is 500`);
    return { name: match[1]!, source: match[2] as TokenChoice['source'], feeBps };
  });
  if (new Set(choices.map((choice) => choice.name)).size < choices.length)
    throw new DeployError('--tokens: a name is given twice');
  return choices;
}

function integer(flag: string, text: string, min: number, max: number): number {
  const value = Number(text);
  if (!Number.isInteger(value) || value < min || value > max) {
    throw new DeployError(`${flag}: ${JSON.stringify(text)} is not a whole number from ${min} to ${max}`);
  }
  return value;
}

function address(flag: string, text: string | undefined): Address | undefined {
  if (text !== undefined && !/^0x[0-9a-fA-F]{40}$/.test(text))
    throw new DeployError(`${flag}: ${JSON.stringify(text)} is no address`);
  return text as Address | undefined;
}

function networkIdOf(text: string | undefined): Hex32 {
  if (text === undefined) return defaultNetworkId;
  if (!/^0x[0-9a-fA-F]{64}$/.test(text))
    throw new DeployError(`--network-id: ${JSON.stringify(text)} is not 32 bytes in hexadecimal`);
  return text as Hex32;
}

async function readEarlier(file: string): Promise<Partial<Deployment> | undefined> {
  let text: string;
  try {
    text = await readFile(file, 'utf8');
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined;
    throw error;
  }
  try {
    return JSON.parse(text) as Partial<Deployment>;
  } catch {
    throw new DeployError(`${file} is there but is not JSON: move it away, or name another with --out`);
  }
}

/** Never half a file: a later run relies on it. */
async function writeWhole(file: string, deployment: Partial<Deployment>): Promise<void> {
  await writeFile(`${file}.part`, `${JSON.stringify(deployment, null, 2)}\n`);
  await rename(`${file}.part`, file);
}

main().catch((error: unknown) => {
  const terminal = error instanceof Error && 'terminal' in error;
  const text =
    error instanceof Error
      ? terminal || error.name === 'TypeError'
        ? error.message
        : (error.stack ?? error.message)
      : String(error);
  process.stderr.write(`deploy-contracts: ${text}\n`);
  process.exitCode = 1;
});
