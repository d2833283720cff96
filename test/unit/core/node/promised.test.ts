/** A provider says what it set aside; the node shows no more of it than was bought. */
import { expect, test } from 'vitest';
import type { AllocationInfo, PromisedNode } from '../../../../operator/api/gateway.ts';
import { asPromised } from '../../../../operator/core/node/promised.ts';

const resources = { cpu: '8', memory: '64Gi', ephemeralStorage: '100Gi' };
const promised: PromisedNode = { offerName: 'rtx4090', model: 'RTX4090', gpus: 1, resources };
const said = (changes: Partial<AllocationInfo>) => ({ gpus: 1, resources, pods: 110, ...changes }) as AllocationInfo;

test.each([
  ['what was promised', said({}), { gpus: 1, resources, pods: 110 }],
  ['more GPUs', said({ gpus: 64 }), { gpus: 1 }],
  ['fewer GPUs: that is believed', said({ gpus: 0 }), { gpus: 0 }],
  ['more memory', said({ resources: { ...resources, memory: '1Ti' } }), { resources }],
  [
    'less of it, in other words',
    said({ resources: { ...resources, memory: '32768Mi' } }),
    { resources: { memory: '32768Mi' } },
  ],
  ['no quantity', said({ resources: { ...resources, cpu: 'lots' } }), { resources }],
  ['two thousand million pods', said({ pods: 2_000_000_000 }), { pods: 1100 }],
])('%s', (_name, info, expected) => expect(asPromised(info, promised)).toMatchObject(expected));
