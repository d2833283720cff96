/** Takes refunds out of the escrows, now and then, for all leases of a token at once. */
import type { GpuProvider, Rail } from '../../api/provider.ts';
import type { Informer, Log } from '../../engine/types.ts';

export interface Treasury {
  withdrawCredit(rail: Rail, least: bigint, signal?: AbortSignal): Promise<void>;
}

/** Each escrow and token that any provider names, once. */
export async function collectRefunds(
  money: Treasury,
  providers: Informer<GpuProvider>,
  least: (rail: Rail) => bigint,
  log: Log,
  signal: AbortSignal,
): Promise<void> {
  const rails = new Map<string, Rail>();
  for (const provider of providers.list())
    for (const rail of provider.spec.payment.rails)
      rails.set(`${rail.chainId}/${rail.escrow}/${rail.token}`.toLowerCase(), rail);
  for (const rail of rails.values()) {
    try {
      await money.withdrawCredit(rail, least(rail), signal);
    } catch (error) {
      if (signal.aborted) return;
      // Credits wait in the contract for as long as it takes.
      log.warn(
        { chainId: rail.chainId, asset: rail.assetSymbol, error: (error as Error).message },
        'refunds could not be withdrawn; trying again later',
      );
    }
  }
}
