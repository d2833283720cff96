/**
 * What becomes of a running pod when it is sent anew. Kubernetes lets little of it change, each part by a way of its own:
 *
 *   pods/ephemeralcontainers   containers are added for debugging, and never taken away
 *   pods                       images, the deadline, our labels and annotations
 *   pods/resize                cpu and memory
 *
 * Each is taken from what was admitted, everything else from what is there, so that defaults and what the provider's own
 * admission added stay. Resizing comes last, as it is what a node may refuse.
 */
import { parseQuantity, QuantityError } from '../quantity.ts';
import type { AdmittedPod } from './admit-pod.ts';
import { isObject } from './fields.ts';

type Json = Record<string, unknown>;

export type PodPart = 'ephemeralcontainers' | 'pod' | 'resize';
export const podParts: readonly PodPart[] = ['ephemeralcontainers', 'pod', 'resize'];

const named = (list: unknown): readonly Json[] => (Array.isArray(list) ? list.filter(isObject) : []);
const inside = (object: Json, field: string): Json => (isObject(object[field]) ? (object[field] as Json) : {});

/** The pod as it is to be written for one part; undefined when there is nothing to write. */
export function replacePart(part: PodPart, current: Json, admitted: AdmittedPod): Json | undefined {
  switch (part) {
    case 'ephemeralcontainers':
      return withEphemeral(current, admitted);
    case 'pod':
      return replacePod(current, admitted);
    case 'resize':
      return resized(current, admitted);
    default:
      return part satisfies never;
  }
}

function withEphemeral(current: Json, admitted: AdmittedPod): Json | undefined {
  const spec = inside(current, 'spec');
  const there = named(spec.ephemeralContainers);
  const fresh = named(admitted.spec.ephemeralContainers).filter(({ name }) => !there.some((one) => one.name === name));
  return fresh.length === 0 ? undefined : { ...current, spec: { ...spec, ephemeralContainers: [...there, ...fresh] } };
}

function replacePod(current: Json, admitted: AdmittedPod): Json | undefined {
  const spec = inside(current, 'spec');
  const metadata = inside(current, 'metadata');
  let changed = false;
  const images = (there: unknown, wanted: unknown) =>
    named(there).map((container) => {
      const image = named(wanted).find((one) => one.name === container.name)?.image;
      if (typeof image !== 'string' || image === container.image) return container;
      changed = true;
      return { ...container, image };
    });
  const marks = (field: 'labels' | 'annotations') => {
    const there = inside(metadata, field);
    const wanted = admitted.metadata[field];
    if (Object.entries(wanted).some(([key, value]) => there[key] !== value)) changed = true;
    return { ...there, ...wanted };
  };
  const { activeDeadlineSeconds } = admitted.spec;
  if (activeDeadlineSeconds !== undefined && activeDeadlineSeconds !== spec.activeDeadlineSeconds) changed = true;
  const next = {
    ...current,
    metadata: { ...metadata, labels: marks('labels'), annotations: marks('annotations') },
    spec: {
      ...spec,
      containers: images(spec.containers, admitted.spec.containers),
      ...(spec.initContainers === undefined
        ? {}
        : { initContainers: images(spec.initContainers, admitted.spec.initContainers) }),
      ...(activeDeadlineSeconds === undefined ? {} : { activeDeadlineSeconds }),
    },
  };
  return changed ? next : undefined;
}

/** Only these can be resized. */
const resizable = ['cpu', 'memory'] as const;

function resized(current: Json, admitted: AdmittedPod): Json | undefined {
  const spec = inside(current, 'spec');
  let changed = false;
  const amounts = (there: Json, wanted: Json): Json => {
    const next: Json = { ...there };
    for (const name of resizable) {
      if (wanted[name] === undefined || sameQuantity(there[name], wanted[name])) continue;
      changed = true;
      next[name] = wanted[name];
    }
    return next;
  };
  const resources = (holder: Json, wanted: Json | undefined): Json => {
    if (wanted === undefined || !isObject(wanted.resources)) return holder;
    const there = inside(holder, 'resources');
    const next = {
      ...there,
      requests: amounts(inside(there, 'requests'), inside(wanted.resources, 'requests')),
      limits: amounts(inside(there, 'limits'), inside(wanted.resources, 'limits')),
    };
    return { ...holder, resources: next };
  };
  const all = (there: unknown, wanted: unknown, which: (container: Json) => boolean) =>
    named(there).map((container) =>
      which(container)
        ? resources(
            container,
            named(wanted).find((one) => one.name === container.name),
          )
        : container,
    );
  const next: Json = {
    ...resources(spec, admitted.spec),
    containers: all(spec.containers, admitted.spec.containers, () => true),
  };
  if (spec.initContainers !== undefined)
    // Sidecars; the others have had their turn.
    next.initContainers = all(
      spec.initContainers,
      admitted.spec.initContainers,
      (container) => container.restartPolicy === 'Always',
    );
  return changed ? { ...current, spec: next } : undefined;
}

function sameQuantity(one: unknown, other: unknown): boolean {
  try {
    return parseQuantity((one as string | undefined) ?? '') === parseQuantity(other as string);
  } catch (error) {
    if (error instanceof QuantityError) return one === other;
    throw error;
  }
}

/**
 * What was asked for, with the resources that the pod has already: for a change of which all but the resources can be
 * admitted. Undefined when they differ in nothing.
 */
export function withResourcesOf(current: Json, asked: unknown): Json | undefined {
  if (!isObject(asked) || !isObject(asked.spec)) return undefined;
  const there = inside(current, 'spec');
  const containers = (list: unknown, present: unknown) =>
    named(list).map((container) => {
      const { resources: _, ...rest } = container;
      const resources = named(present).find((one) => one.name === container.name)?.resources;
      return resources === undefined ? rest : { ...rest, resources };
    });
  const { resources: _, ...spec } = asked.spec as Json;
  return {
    ...asked,
    spec: {
      ...spec,
      ...(there.resources === undefined ? {} : { resources: there.resources }),
      containers: containers(spec.containers, there.containers),
      ...(spec.initContainers === undefined
        ? {}
        : { initContainers: containers(spec.initContainers, there.initContainers) }),
    },
  };
}
