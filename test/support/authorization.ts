/** EIP-3009: a consumer signs that the escrow may take a deposit, and anybody who has gas opens with it. */
import type { Call } from '../../operator/adapters/chain/escrow-client.ts';
import type { ChainKey } from '../../operator/adapters/chain/key.ts';
import { authorizationNonce, hashQuote } from '../../operator/adapters/chain/messages.ts';
import type { Address, Quote, Signed } from '../../operator/api/messages.ts';
import type { EscrowChain } from './escrow-chain.ts';

const types = {
  ReceiveWithAuthorization: [
    { name: 'from', type: 'address' },
    { name: 'to', type: 'address' },
    { name: 'value', type: 'uint256' },
    { name: 'validAfter', type: 'uint256' },
    { name: 'validBefore', type: 'uint256' },
    { name: 'nonce', type: 'bytes32' },
  ],
};
const validBefore = 10_000_000_000;

/** The opening, for the quote's consumer, whose key this is. */
export async function authorizedOpen(
  { client, usdc }: Pick<EscrowChain, 'client' | 'usdc'>,
  key: ChainKey,
  signed: Signed<Quote>,
  signer: Address,
  deposit: bigint,
): Promise<Call> {
  const { calls, domain, address, chainId } = client;
  const signature = await key.signTypedData(
    { name: 'Mock USD Coin', version: '1', chainId, verifyingContract: usdc },
    types,
    {
      from: signed.message.consumer,
      to: address,
      value: deposit,
      validAfter: 0,
      validBefore,
      nonce: authorizationNonce(hashQuote(domain, signed.message), signer),
    },
  );
  return calls.openWithAuthorization(signed, signer, deposit, { validAfter: 0, validBefore, signature });
}
