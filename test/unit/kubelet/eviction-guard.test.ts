import { afterEach, expect, test, vi } from 'vitest';
import { ApiError, UnknownOutcomeError } from '../../../operator/engine/errors.ts';
import { silentLog } from '../../../operator/engine/log.ts';
import type { Cluster } from '../../../operator/engine/types.ts';
import { createEvictionGuard } from '../../../operator/kubelet/eviction-guard.ts';

const refused = (code: number, reason: string) => new ApiError({ code, reason, message: 'no' });
const stop = new AbortController();
afterEach(() => vi.useRealTimers());

/** What each call of `apply` comes to, in turn; the last for ever. */
function guarded(...outcomes: (Error | undefined)[]) {
  const applied: string[] = [];
  const apply = async (_: unknown, object: { kind: string }) => {
    const outcome = outcomes.length > 1 ? outcomes.shift() : outcomes[0];
    if (outcome) throw outcome;
    applied.push(object.kind);
    return object;
  };
  const changes: (boolean | undefined)[] = [];
  const guard = createEvictionGuard({
    cluster: { apply } as unknown as Cluster,
    log: silentLog,
    intervalSeconds: 0.02,
  });
  guard.onChange(() => changes.push(guard.holds));
  void guard.run(stop.signal);
  return { guard, changes, applied };
}

test('makes the policy and its binding, and then holds', async () => {
  const { guard, applied } = guarded(undefined);
  expect(guard.holds).toBeUndefined();
  await vi.waitFor(() => expect(guard.holds).toBe(true));
  expect(applied.slice(0, 2)).toEqual(['MutatingAdmissionPolicy', 'MutatingAdmissionPolicyBinding']);
});

test('looks again, and tells only of what changes', async () => {
  const { guard, applied, changes } = guarded(undefined);
  await vi.waitFor(() => expect(applied.length).toBeGreaterThan(4));
  expect(guard.holds).toBe(true);
  expect(changes).toEqual([true]);
});

test.each([
  ['there is no such kind', refused(404, 'NotFound')],
  ['the right is missing', refused(403, 'Forbidden')],
])('does not hold where %s, until that changes', async (_, error) => {
  const { guard, changes } = guarded(error, error, undefined);
  await vi.waitFor(() => expect(guard.holds).toBe(true));
  expect(changes).toEqual([false, true]);
});

test.each([
  ['silence', new UnknownOutcomeError('no answer')],
  ['a busy server', refused(429, 'TooManyRequests')],
])('is not thought lost because of %s', async (_, error) => {
  const { guard, changes } = guarded(undefined, undefined, error);
  await vi.waitFor(() => expect(guard.holds).toBe(true));
  await new Promise((resolve) => setTimeout(resolve, 100));
  expect(changes).toEqual([true]);
});
