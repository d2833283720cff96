import { describe, expect, test } from 'vitest';
import {
  conditionsChanged,
  type NodeCondition,
  nodeConditions,
  readySince,
} from '../../../../operator/core/node/virtual-node.ts';

const at = (minute: number) => new Date(Date.UTC(2026, 2, 1, 12, minute));
const text = (minute: number) => at(minute).toISOString().replace('.000Z', 'Z');
const lost = { ready: false, reason: 'ProviderUnreachable', message: 'no answer' };

/** What the node lifecycle controller makes of a node without heartbeats. */
const silenced = (conditions: readonly NodeCondition[], minute: number): NodeCondition[] =>
  conditions.map((one) =>
    ['Ready', 'MemoryPressure', 'DiskPressure', 'PIDPressure'].includes(one.type) && one.status !== 'Unknown'
      ? { ...one, status: 'Unknown', reason: 'NodeStatusUnknown', lastTransitionTime: text(minute) }
      : one,
  );

describe('a node that is not ready for long', () => {
  const served = nodeConditions(undefined, { ready: true }, at(0));
  const said = nodeConditions(served, lost, at(10));
  const unknown = silenced(said, 11);
  const again = nodeConditions(unknown, lost, at(12));

  test('is not fought over with Kubernetes: Unknown stays, with our reason', () => {
    expect(again[0]).toMatchObject({ status: 'Unknown', reason: lost.reason, lastTransitionTime: text(11) });
    expect(conditionsChanged(again, nodeConditions(again, lost, at(13)))).toBe(false);
  });
  test('is not ready since we said so, not since Kubernetes did', () => {
    expect(readySince(said)).toBe(text(10));
    expect(readySince(again)).toBe(text(10));
  });
  test('was Ready until Kubernetes missed its heartbeat, when nobody of us said anything', () => {
    expect(readySince(silenced(served, 11))).toBe(text(11));
    expect(readySince(nodeConditions(silenced(served, 11), lost, at(12)))).toBe(text(11));
  });
  test('is Ready since it came back', () => {
    expect(readySince(nodeConditions(again, { ready: true }, at(20)))).toBe(text(20));
  });
});
