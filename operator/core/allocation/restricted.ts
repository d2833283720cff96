/**
 * Pod Security "restricted", where the provider chose it: what its pods must say is said for those that say nothing, and
 * what contradicts it is refused by field. Kubernetes asks the same of the tenant's namespace.
 * https://kubernetes.io/docs/concepts/security/pod-security-standards/#restricted
 */
import { type Admission, isObject, refuse } from './fields.ts';

const chosen = 'this provider runs pods under Pod Security "restricted"';

interface Container {
  securityContext?: Record<string, unknown>;
}

/** `security`: the pod's own context. */
export function restrictContainer<C extends Container>(
  container: C,
  path: string,
  security: Readonly<Record<string, unknown>>,
  admission: Admission,
): C {
  const own = container.securityContext ?? {};
  const at = `${path}.securityContext`;
  if (own.allowPrivilegeEscalation === true)
    refuse(admission, `${at}.allowPrivilegeEscalation`, `must be false: ${chosen}`, true);
  const capabilities = isObject(own.capabilities) ? own.capabilities : {};
  const added = Array.isArray(capabilities.add) ? capabilities.add : [];
  for (const name of added)
    if (String(name).replace(/^CAP_/, '') !== 'NET_BIND_SERVICE')
      refuse(admission, `${at}.capabilities.add`, `may have NET_BIND_SERVICE alone: ${chosen}`, name);
  if (own.runAsNonRoot === false) refuse(admission, `${at}.runAsNonRoot`, `must be true: ${chosen}`, false);
  if (own.runAsUser === 0) refuse(admission, `${at}.runAsUser`, `must not be 0: ${chosen}`, 0);
  return {
    ...container,
    securityContext: {
      ...own,
      allowPrivilegeEscalation: false,
      // Where it says nothing itself, the pod's word holds, which is true.
      ...(own.runAsNonRoot === undefined && security.runAsNonRoot === true ? {} : { runAsNonRoot: true }),
      capabilities: { ...(added.length > 0 ? { add: added } : {}), drop: ['ALL'] },
    },
  };
}

export function restrictPod(asked: unknown, admission: Admission): Record<string, unknown> {
  const own = isObject(asked) ? asked : {};
  if (own.runAsNonRoot === false)
    refuse(admission, 'spec.securityContext.runAsNonRoot', `must be true: ${chosen}`, false);
  if (own.runAsUser === 0) refuse(admission, 'spec.securityContext.runAsUser', `must not be 0: ${chosen}`, 0);
  return { ...own, runAsNonRoot: true, seccompProfile: own.seccompProfile ?? { type: 'RuntimeDefault' } };
}
