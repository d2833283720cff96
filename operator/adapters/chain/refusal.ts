/**
 * What a contract said no with, in words that name the fix. Terminal: the same call will be refused again whatever time
 * passes. Retryable: somebody else's act or the clock can lift it.
 */
import { Interface } from 'ethers';
import type { Hex } from '../../api/messages.ts';
import { gpuToken } from '../../contracts/generated/gpu-token.ts';
import { leaseEscrow } from '../../contracts/generated/lease-escrow.ts';
import { RpcError } from './rpc.ts';

export interface Refusal {
  /** Name of the contract's error; `Reverted` when it is none that is known. */
  readonly name: string;
  readonly terminal: boolean;
  readonly message: string;
  readonly args: Readonly<Record<string, string>>;
}

type Args = Readonly<Record<string, string>>;
interface Known {
  readonly terminal: boolean;
  readonly say: (args: Args) => string;
}

const terminal = (say: (args: Args) => string): Known => ({ terminal: true, say });
const retryable = (say: (args: Args) => string): Known => ({ terminal: false, say });

/** One entry per custom error of LeaseEscrow, and those of the libraries and tokens that callers can bring about. */
export const knownRefusals: Readonly<Record<string, Known>> = {
  OpensArePaused: retryable(() => 'new escrows are paused by the owner of the contract: wait until they are resumed'),
  NotAuthorized: terminal(({ caller }) => `${caller} may not do this: use the key of the party that may`),
  WrongNetwork: terminal(
    ({ networkId }) =>
      `the quote was made for network ${networkId}, not for this contract's: ask a provider of this network`,
  ),
  QuoteExpired: terminal(({ expiresAt }) => `the quote expired at ${expiresAt} (Unix seconds): ask for a new one`),
  QuoteIsCancelled: terminal(() => 'the provider cancelled this quote: ask for a new one'),
  InvalidTerms: terminal(
    () => 'a term of the quote is empty, contradictory or too large: the provider must correct it',
  ),
  TokenNotAllowed: terminal(
    ({ token }) => `the contract takes no new escrows in token ${token}: choose a token that it allows`,
  ),
  BadSignature: terminal(
    ({ expected }) => `the signature is not by ${expected}: check key, chain and contract on the signing side`,
  ),
  DepositOutOfRange: terminal(
    ({ deposit, min, max }) => `a deposit of ${deposit} base units is outside of ${min} to ${max}: choose one inside`,
  ),
  WrongAmountReceived: terminal(
    () => 'the token moved another amount than was asked; tokens that tax transfers cannot be used',
  ),
  LeaseExists: terminal(
    ({ leaseId }) => `this consumer has opened ${leaseId} before: read its state instead of opening again`,
  ),
  LeaseNotFound: retryable(
    ({ leaseId }) => `there is no escrow ${leaseId} (yet): check the id, or wait until its opening is mined`,
  ),
  LeaseIsClosed: terminal(({ leaseId }) => `escrow ${leaseId} is closed: nothing more can be done but withdraw`),
  LeaseIsOpen: retryable(
    ({ leaseId }) => `escrow ${leaseId} is open: what is left of a top-up is credited after its close`,
  ),
  AlreadyClosing: terminal(
    ({ leaseId }) => `the close of ${leaseId} was requested before: wait for the claim window and finalize`,
  ),
  NotLastVoucher: terminal(
    () => 'only a voucher marked as the last closes at once: ask the consumer for one, or settle',
  ),
  NotProviderReason: terminal(() => "the reason must be one of the provider's own"),
  NotFinalizableBefore: retryable(
    ({ time }) => `the claim window is open until ${time} (Unix seconds): finalize after it`,
  ),
  NothingToWithdraw: terminal(({ account }) => `${account} has nothing to withdraw in this token`),
  NothingToRefund: terminal(
    ({ leaseId, index }) => `nothing is left of top-up ${index} of escrow ${leaseId}, or it was credited before`,
  ),
  BadReceiver: terminal(({ to }) => `money sent to ${to} would be lost: name another receiver`),
  FeeTooHigh: terminal(({ feeBps, max }) => `a fee of ${feeBps} is above the cap of ${max} (in 1/10000)`),
  OwnableInvalidOwner: terminal(({ owner }) => `${owner} cannot own the contract: name another account`),
  OwnableUnauthorizedAccount: terminal(({ account }) => `${account} is not the owner of the contract`),
  ReentrancyGuardReentrantCall: terminal(() => 'the token called back into the contract: it cannot be used'),
  SafeERC20FailedOperation: retryable(
    ({ token }) => `token ${token} refused the transfer: check balance, allowance, and whether the token is paused`,
  ),
  ERC20InsufficientBalance: retryable(
    ({ sender, balance, needed }) => `${sender} has ${balance} base units of the token and needs ${needed}: fund it`,
  ),
  ERC20InsufficientAllowance: retryable(
    ({ spender, allowance, needed }) =>
      `the allowance for ${spender} is ${allowance} base units, ${needed} are needed: approve first`,
  ),
};

const errors = new Interface([...leaseEscrow.abi, ...gpuToken.abi].filter((item) => item.type === 'error'));

/** From revert data, or the RpcError that carries it. Undefined when the contract did not refuse: then nothing is known. */
export function decodeRefusal(error: unknown): Refusal | undefined {
  if (typeof error === 'string') return decodeData(error as Hex);
  if (!(error instanceof RpcError)) return undefined;
  if (error.data !== undefined) return decodeData(error.data);
  // Code 3 is a revert by definition; some nodes send it, or its words, without bytes when the contract gave none.
  if (error.code === 3 || /execution reverted/i.test(error.message))
    return unknownRevert('the contract gave no reason');
  return undefined;
}

function decodeData(data: Hex): Refusal {
  const reason = stringReason(data);
  if (reason !== undefined) return unknownRevert(reason);
  let parsed: ReturnType<typeof errors.parseError> = null;
  try {
    parsed = errors.parseError(data);
  } catch {
    parsed = null;
  }
  if (!parsed) return unknownRevert(`unknown error ${data.slice(0, 10)}`);
  const args: Record<string, string> = {};
  for (const [index, input] of parsed.fragment.inputs.entries()) args[input.name] = String(parsed.args[index]);
  const known = knownRefusals[parsed.name];
  if (!known) return { name: parsed.name, terminal: true, message: `the contract refused: ${parsed.name}`, args };
  return { name: parsed.name, terminal: known.terminal, message: known.say(args), args };
}

function stringReason(data: Hex): string | undefined {
  if (!data.startsWith('0x08c379a0')) return undefined;
  try {
    return String(new Interface(['error Error(string)']).parseError(data)?.args[0]).slice(0, 200);
  } catch {
    return undefined;
  }
}

const unknownRevert = (why: string): Refusal => ({
  name: 'Reverted',
  terminal: true,
  message: `the contract refused: ${why}`,
  args: {},
});
