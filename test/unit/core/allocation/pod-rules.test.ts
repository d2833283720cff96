/** What a provider may choose for the pods of all its tenants. */
import { describe, expect, test } from 'vitest';
import { admitPod } from '../../../../operator/core/allocation/admit-pod.ts';
import {
  anyImage,
  imageRefusal,
  isImageBeginning,
  wholeReference,
} from '../../../../operator/core/allocation/images.ts';
import type { PodRules } from '../../../../operator/core/allocation/pod-rules.ts';
import type { Refusal } from '../../../../operator/core/allocation/refusal.ts';

describe('references of images', () => {
  test.each([
    ['busybox', 'docker.io/library/busybox'],
    ['busybox:1.37', 'docker.io/library/busybox:1.37'],
    ['acme/tool', 'docker.io/acme/tool'],
    ['docker.io/busybox', 'docker.io/library/busybox'],
    ['index.docker.io/library/busybox', 'docker.io/library/busybox'],
    ['localhost/busybox', 'localhost/busybox'],
    ['registry:5000/busybox', 'registry:5000/busybox'],
    ['ghcr.io/acme/tool@sha256:00', 'ghcr.io/acme/tool@sha256:00'],
  ])('%s is %s', (image, whole) => expect(wholeReference(image)).toBe(whole));

  test.each([
    ['anything, where nothing is chosen', 'quay.io/a/b', anyImage, undefined],
    ['what is allowed', 'ghcr.io/acme/a', { ...anyImage, allow: ['ghcr.io/acme/'] }, undefined],
    ['what is not', 'ghcr.io/acme-2/a', { ...anyImage, allow: ['ghcr.io/acme/'] }, /not of those/],
    ['what is denied, though allowed', 'a/b', { ...anyImage, allow: ['docker.io/'], deny: ['docker.io/a/'] }, /denied/],
    ['a tag', 'a/b:1', { ...anyImage, digestsOnly: true }, /by its digest/],
    ['a digest that is cut', `a/b@sha256:${'0'.repeat(63)}`, { ...anyImage, digestsOnly: true }, /by its digest/],
    ['a digest', `a/b:1@sha256:${'0'.repeat(64)}`, { ...anyImage, digestsOnly: true }, undefined],
  ])('%s', (_name, image, rules, says) => {
    const why = imageRefusal(image, rules);
    if (says === undefined) expect(why).toBeUndefined();
    else expect(why).toMatch(says);
  });

  test('what could break out of a policy is no beginning', () => {
    for (const wrong of ["a'", 'a b', '', '/a', "ghcr.io/'+''"]) expect(isImageBeginning(wrong), wrong).toBe(false);
    expect(isImageBeginning('ghcr.io/acme/')).toBe(true);
  });
});

describe('Pod Security "restricted"', () => {
  const rules: PodRules = { podSecurity: 'restricted', images: anyImage };
  const context = {
    namespace: 'gl-0',
    leaseId: 'abc',
    nodeName: 'node-a',
    room: { gpus: 1, cpuMillis: 1000, memoryBytes: 1024 ** 3, ephemeralBytes: 1024 ** 3, pods: 10 },
    rules,
  };
  const pod = (security?: object, ofPod?: object) => ({
    metadata: { name: 'p' },
    spec: {
      ...(ofPod && { securityContext: ofPod }),
      containers: [{ name: 'main', image: 'busybox', ...(security && { securityContext: security }) }],
    },
  });

  test('is given to pods that say nothing', () => {
    const { spec } = admitPod(pod(), context);
    expect(spec).toMatchObject({
      securityContext: { runAsNonRoot: true, seccompProfile: { type: 'RuntimeDefault' } },
      containers: [{ securityContext: { allowPrivilegeEscalation: false, capabilities: { drop: ['ALL'] } } }],
    });
  });

  test.each([
    ['root', { runAsUser: 0 }, undefined, 'spec.containers[0].securityContext.runAsUser'],
    ['root for the whole pod', undefined, { runAsUser: 0 }, 'spec.securityContext.runAsUser'],
    ['root, perhaps', { runAsNonRoot: false }, undefined, 'spec.containers[0].securityContext.runAsNonRoot'],
    [
      'more than was given',
      { allowPrivilegeEscalation: true },
      undefined,
      'spec.containers[0].securityContext.allowPrivilegeEscalation',
    ],
    [
      'a capability',
      { capabilities: { add: ['CHOWN'] } },
      undefined,
      'spec.containers[0].securityContext.capabilities.add',
    ],
  ])('refuses %s by field', (_name, security, ofPod, field) => {
    try {
      admitPod(pod(security, ofPod), context);
      expect.unreachable('it was admitted');
    } catch (error) {
      expect((error as Refusal).errors?.map((one) => one.field)).toEqual([field]);
    }
  });

  test('holds for everybody but a trusted tenant', () => {
    const { spec } = admitPod(pod({ runAsUser: 0 }), { ...context, profile: 'trusted' });
    expect(spec).not.toHaveProperty('securityContext');
  });
});

test('the runtime class is the provider’s, whatever the pod asks for; pods with GPUs may have their own', () => {
  const rules: PodRules = {
    podSecurity: 'baseline',
    runtimeClass: 'gvisor',
    gpuRuntimeClass: 'nvidia',
    images: anyImage,
  };
  const context = {
    namespace: 'gl-0',
    leaseId: 'abc',
    nodeName: 'node-a',
    room: { gpus: 1, cpuMillis: 1000, memoryBytes: 1024 ** 3, ephemeralBytes: 1024 ** 3, pods: 10 },
    rules,
  };
  const classOf = (container: object) =>
    admitPod(
      {
        metadata: { name: 'p' },
        spec: { runtimeClassName: 'mine', containers: [{ name: 'm', image: 'a', ...container }] },
      },
      context,
    ).spec.runtimeClassName;
  expect(classOf({})).toBe('gvisor');
  expect(classOf({ resources: { limits: { 'nvidia.com/gpu': 1 } } })).toBe('nvidia');
});
