/** Whose pods may run on a leased node. */
import { everyNamespace } from '../../api/lease.ts';

/** `allowed`: spec.access.namespaces of the lease, or the lease's own namespace where it names none. */
export const mayUseLease = (allowed: readonly string[], namespace: string): boolean =>
  namespace !== '' && (allowed.includes(everyNamespace) || allowed.includes(namespace));
