/** What a consumer needs to lease here: a GpuProvider to paste, in which only the limits are the consumer's to choose. */
import type { ProviderInfo } from '../../api/gateway.ts';
import { apiVersion } from '../../api/labels.ts';

/** Shown as a limit, until the consumer writes its own. */
export const exampleMaxEscrow = '100';

export function providerManifest(
  info: Pick<ProviderInfo, 'address' | 'rails'>,
  at: {
    readonly name: string;
    /** Not there: nobody can connect to it, and it dials out. */
    readonly url?: string;
    readonly spkiSHA256?: string;
    readonly caBundle?: string;
  },
) {
  return {
    apiVersion,
    kind: 'GpuProvider',
    metadata: { name: at.name },
    spec: {
      // Over a link the account proves the certificate: there is nothing to pin.
      endpoint:
        at.url === undefined
          ? { via: 'Reverse' }
          : {
              url: at.url,
              ...(at.caBundle === undefined ? {} : { caBundle: at.caBundle }),
              ...(at.spkiSHA256 === undefined ? {} : { spkiSHA256: at.spkiSHA256 }),
            },
      identity: { address: info.address },
      payment: {
        rails: info.rails.map(({ chainId, escrow, token, assetSymbol }) => ({
          chainId,
          escrow,
          token,
          assetSymbol,
          maxEscrow: exampleMaxEscrow,
        })),
      },
    },
  };
}
