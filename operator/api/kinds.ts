/** All kinds of the API group, in the order in which a reader meets them. */
import { gpuAccess } from './access.ts';
import { gpuBudget } from './budget.ts';
import { gpuLease } from './lease.ts';
import { gpuOffer } from './offer.ts';
import { gpuProvider } from './provider.ts';
import type { KindDefinition } from './schema.ts';

export const kinds: readonly KindDefinition[] = [gpuLease, gpuProvider, gpuOffer, gpuBudget, gpuAccess];
