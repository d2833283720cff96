/** Before GPUs are sold again, nothing of their last tenant may be left. */
import { describe, expect, test } from 'vitest';
import { leftOver, type Remains } from '../../../../operator/core/allocation/residue.ts';

const nothing: Remains = { volumes: [], running: 0, nodeIsThere: true, unseen: false };
const content = {
  type: 'NamespaceContentRemaining',
  status: 'True',
  message: 'Some resources are remaining: persistentvolumeclaims. has 1 resource instances',
};

describe('what is left of a tenant', () => {
  test.each<[string, Partial<Remains>]>([
    ['nothing', {}],
    ['nothing that a node which is no more could run', { nodeIsThere: false, running: undefined, unseen: true }],
    [
      'nothing in the word of the API server, where the node was seen and its kubelet measures nothing',
      { running: undefined },
    ],
    [
      'nothing that a kubelet could not have ended since it came back',
      { running: undefined, unseen: true, nodeReadySeconds: 121 },
    ],
    ['nothing in the word of the kubelet, though the node was silent before', { unseen: true }],
  ])('%s', (_name, change) => expect(leftOver({ ...nothing, ...change })).toBeUndefined());

  test.each<[string, Partial<Remains>, RegExp]>([
    ['its namespace', { namespace: { name: 'gl-1' } }, /^namespace gl-1 is being deleted$/],
    ['its namespace, and why', { namespace: { name: 'gl-1', conditions: [content] } }, /persistentvolumeclaims/],
    ['its volumes', { volumes: ['pv-1', 'pv-2'] }, /volumes are being deleted: pv-1, pv-2/],
    ['its containers', { running: 2 }, /kubelet still knows 2 of its pods/],
    ['perhaps its containers', { running: undefined, unseen: true }, /while the node was silent/],
    [
      'perhaps its containers, as the kubelet has only just come back',
      { running: undefined, unseen: true, nodeReadySeconds: 60 },
      /while the node was silent/,
    ],
  ])('%s', (_name, change, says) => expect(leftOver({ ...nothing, ...change })).toMatch(says));
});
