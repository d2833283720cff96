/** Service accounts of the split sides, with their rights and no others, and kubeconfigs of theirs. */
import { dump, load } from 'js-yaml';
import { applyManifests } from '../adapters/kube/apply-manifests.ts';
import { evictionGuard } from '../core/node/eviction.ts';
import { accountOf } from '../core/rights/accounts.ts';
import { consumerAccounts } from '../core/rights/consumer.ts';
import { guards } from '../core/rights/guards.ts';
import { providerAccounts } from '../core/rights/provider.ts';
import { rbacOf, sharedRoles } from '../core/rights/rbac.ts';
import { type Account, type ProcessName, userOf } from '../core/rights/rule.ts';
import { type Cluster, resources } from '../engine/types.ts';
import type { PlaneAccess } from './clusters/plane.ts';

/** Longer than any sandbox lives. */
const tokenSeconds = 7 * 86_400;

/** Everything that the chart brings for one side: namespaces, accounts, roles, bindings, policies. */
export async function applyAccounts(cluster: Cluster, side: Account['side'], signal?: AbortSignal): Promise<void> {
  const accounts = side === 'consumer' ? consumerAccounts : providerAccounts;
  const namespaces = [...new Set(accounts.map((one) => one.namespace))].map((name) => ({
    apiVersion: 'v1',
    kind: 'Namespace',
    metadata: { name },
  }));
  const { policy, binding } = evictionGuard();
  const policies =
    side === 'consumer'
      ? [
          policy,
          binding,
          ...guards({ operator: userOf(accountOf('operator')), approver: userOf(accountOf('approver')) }),
        ]
      : [];
  await applyManifests(
    cluster,
    [...namespaces, ...accounts.flatMap((one) => rbacOf(one)), ...sharedRoles[side], ...policies] as never[],
    { fieldManager: 'sandbox' },
    signal,
  );
}

/** A token of the account; of the API server's own audience unless another is named. */
export async function tokenOf(
  cluster: Cluster,
  process: ProcessName,
  audience?: string,
  signal?: AbortSignal,
): Promise<string> {
  const { namespace, serviceAccount: name } = accountOf(process);
  const answer = await cluster.createSubresource<{ status?: { token?: string } }>(
    resources.serviceAccounts,
    { namespace, name },
    'token',
    {
      apiVersion: 'authentication.k8s.io/v1',
      kind: 'TokenRequest',
      spec: { expirationSeconds: tokenSeconds, ...(audience !== undefined && { audiences: [audience] }) },
    },
    signal,
  );
  if (!answer.status?.token) throw new Error(`the API server gave no token of ${namespace}/${name}`);
  return answer.status.token;
}

/** The plane's kubeconfig with the account's token instead of its certificate. */
export async function kubeconfigOf(
  plane: PlaneAccess,
  cluster: Cluster,
  process: ProcessName,
  at: { readonly server?: string } = {},
  signal?: AbortSignal,
): Promise<string> {
  const yaml = await plane.issueKubeconfig(process, [], at);
  const config = load(yaml) as { users: { name: string; user: object }[] };
  const token = await tokenOf(cluster, process, undefined, signal);
  return dump({ ...config, users: config.users.map(({ name }) => ({ name, user: { token } })) });
}
