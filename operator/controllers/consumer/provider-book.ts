/** What is known of each provider since this process started; leases wait for a provider that was not probed yet. */
import type { Assessment, RailFact } from '../../core/provider/assess.ts';

export interface KnownProvider {
  readonly assessment: Assessment;
  readonly rails: readonly RailFact[];
  readonly failures: number;
}

export type ProviderBook = Map<string, KnownProvider>;
