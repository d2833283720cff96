import { expect, test } from 'vitest';
import { subjectOf, wantedBindings } from '../../../../operator/controllers/consumer/namespace-rights.ts';
import { lease } from '../../../support/builders.ts';

const all = ['ml', 'web', 'kube-system', 'gpulease-wallet'];
const closed = new Set(['kube-system', 'gpulease-wallet']);
const inNamespace = 'gpulease-operator-in-namespace';
const tokens = 'gpulease-operator-tokens';
const at = (namespace: string, access: Parameters<typeof lease>[0]) => lease(access, { metadata: { namespace } });

const cases: [string, ReturnType<typeof lease>[], string[]][] = [
  ['nowhere without leases', [], []],
  ["in a lease's own namespace", [at('ml', {})], [`ml/${inNamespace}`]],
  [
    'in those whose pods may use the lease',
    [at('ml', { access: { namespaces: ['web'], serviceAccountTokens: 'None' } })],
    [`ml/${inNamespace}`, `web/${inNamespace}`],
  ],
  [
    'in every one, but for those that are closed',
    [at('ml', { access: { namespaces: ['*'], serviceAccountTokens: 'None' } })],
    [`ml/${inNamespace}`, `web/${inNamespace}`],
  ],
  [
    'not where it is closed, and not where there is no such namespace',
    [at('ml', { access: { namespaces: ['kube-system', 'gone'], serviceAccountTokens: 'None' } })],
    [`ml/${inNamespace}`],
  ],
  [
    'with tokens only where a lease has them bound',
    [at('ml', { access: { serviceAccountTokens: 'Bound' } }), at('web', {})],
    [`ml/${inNamespace}`, `ml/${tokens}`, `web/${inNamespace}`],
  ],
];
test.each(cases)('the operator is let in %s', (_, leases, wanted) => {
  expect([...wantedBindings(leases, all, closed)].sort()).toEqual([...wanted].sort());
});

test('names service accounts and users as RBAC wants them', () => {
  expect(subjectOf('system:serviceaccount:a:b')).toEqual({ kind: 'ServiceAccount', namespace: 'a', name: 'b' });
  expect(subjectOf('jane')).toMatchObject({ kind: 'User', name: 'jane' });
});
