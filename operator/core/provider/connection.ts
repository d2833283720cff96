/** How a provider is reached now, as its status tells it. Of links it is known between calls; straight connections come and go. */
import type { ProviderStatus } from '../../api/provider.ts';

export interface SeenRoute {
  readonly via: 'Direct' | 'Reverse' | 'Relay';
  /** Undefined: connections are made as they are needed. */
  readonly up?: boolean;
  readonly since?: Date;
  readonly through?: string;
  readonly links?: number;
  readonly why?: string;
}

export function connectionOf(route: SeenRoute): NonNullable<ProviderStatus['connection']> {
  const { via, up, since, through, links, why } = route;
  if (up === undefined) return { via, state: 'OnDemand' };
  return {
    via,
    state: up ? 'Up' : 'Down',
    ...(through ? { through: through.slice(0, 253) } : {}),
    ...(links === undefined ? {} : { links }),
    ...(up && since ? { since: since.toISOString().replace(/\.\d{3}Z$/, 'Z') } : {}),
    ...(!up && why ? { message: why.slice(0, 512) } : {}),
  };
}
