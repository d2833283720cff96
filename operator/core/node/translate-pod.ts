/**
 * The consumer's pod as it is sent to the provider. What becomes of each field is a table: see pod-fields.ts, and the
 * reference, which is written from it.
 *
 * Carried: what makes the containers what they are. Left behind: what placed the pod, its service account, its labels and
 * annotations, which are nobody's business there. Refused at once, with words for the pod: what no provider gives. The
 * provider decides again by itself; nothing here is a fence for it.
 *
 * References to ConfigMaps and Secrets are renamed, and listed, so that only those are sent. Questions about itself
 * (`fieldRef`, `resourceFieldRef`) are answered with the consumer's values: in env as plain values, in files through
 * annotations of ours, which the downward API at the provider reads and refreshes.
 */
import { annotations, gpuResource, group, labels, managedBy } from '../../api/labels.ts';
import { formatQuantity, parseQuantity, QuantityError } from '../quantity.ts';
import type { Note, Work } from './carrying.ts';
import { carryContainer, ephemeralContainerTable } from './container-fields.ts';
import type { SelfView } from './downward.ts';
import { carryObject, type PodRefusal, Refused } from './field-table.ts';
import { remotePodName } from './names.ts';
import type { Container, Pod, PodSpec } from './pod.ts';
import { podSpecTable } from './pod-fields.ts';
import { podRequests } from './requests.ts';
import { type ServiceLinks, serviceLinksName, serviceLinksOf } from './service-links.ts';
import { sha256Hex } from './sha256.ts';
import type { TokenWish } from './token-wish.ts';

export { downwardAnnotation } from './carrying.ts';
export type { PodRefusal } from './field-table.ts';

export interface Reference {
  readonly name: string;
  /** Nobody needs it: the pod starts without. */
  readonly optional: boolean;
}

export interface Translated {
  readonly pod: Pod;
  readonly configMaps: readonly Reference[];
  readonly secrets: readonly Reference[];
  /** Whose Services its containers are told of. */
  readonly services: ServiceLinks;
  /** Tokens that its volumes show; none unless the lease lets them out. */
  readonly tokens: readonly TokenWish[];
  /** Ephemeral containers that are not carried. They cannot be taken back, so the pod goes on without them. */
  readonly withheld: readonly { readonly name: string; readonly message: string }[];
  /** What stays behind and its author should know. */
  readonly notes: readonly Note[];
  readonly refused?: undefined;
}
export type Translation = Translated | { readonly refused: PodRefusal; readonly message: string };

/** On the remote pod: hash of what was sent, so that an unchanged pod is not sent again after a restart. */
export const carriedHash = `${group}/carried`;

/** Annotations of one pod may not be more in all (the API server's limit is 256 KiB); the rest is room for the provider's. */
const maxAnnotationBytes = 200_000;

/**
 * `running`: the pod runs at the provider, and this is a change of it. What it asks for was judged then; a change of that is
 * judged by the provider, so that everything else of the change is carried whatever becomes of it.
 */
export function translatePod(pod: Pod, view: SelfView, running = false): Translation {
  try {
    if (!running) refuseMoreThanLeased(pod, view);
    return translate(pod, view);
  } catch (error) {
    if (error instanceof Refused) return { refused: error.reason, message: error.message };
    if (error instanceof QuantityError) return { refused: 'FieldNotSupported', message: error.message };
    throw error;
  }
}

function translate(pod: Pod, view: SelfView): Translated {
  const { name, namespace = '', uid = '' } = pod.metadata;
  const services = serviceLinksOf(namespace, pod.spec.enableServiceLinks as boolean | undefined);
  const work: Work = {
    pod,
    view,
    configMaps: new Map(),
    secrets: new Map(),
    annotations: {
      [annotations.podNamespace]: namespace,
      [annotations.podName]: name,
      [annotations.podUid]: uid,
    },
    dropped: new Set(),
    tokens: [],
    notes: [],
    services: serviceLinksName(services),
  };
  const spec = carryObject(podSpecTable, pod.spec, 'spec', work) as unknown as PodSpec;
  const { ephemeral, withheld } = carryEphemeral(pod, work);
  if (ephemeral.length > 0) spec.ephemeralContainers = ephemeral;

  const bytes = Object.values(work.annotations).reduce((sum, value) => sum + value.length, 0);
  if (bytes > maxAnnotationBytes)
    throw new Refused(
      'FieldNotSupported',
      `downward API files show ${bytes} bytes of metadata, at most ${maxAnnotationBytes} can be carried`,
    );
  const carried = {
    metadata: {
      name: remotePodName(name, uid),
      labels: { [labels.managedBy]: managedBy },
      annotations: work.annotations,
    },
    spec,
  };
  work.annotations[carriedHash] = sha256Hex(JSON.stringify(carried)).slice(0, 32);
  const list = (found: Map<string, boolean>) => [...found].map(([name, optional]) => ({ name, optional }));
  return {
    pod: { apiVersion: 'v1', kind: 'Pod', ...carried },
    configMaps: list(work.configMaps),
    secrets: list(work.secrets),
    services,
    tokens: work.tokens,
    withheld,
    notes: work.notes,
  };
}

/** Each for itself: one that is refused stays in the consumer's pod for ever, and must not hold up what comes later. */
function carryEphemeral(pod: Pod, work: Work) {
  const ephemeral: Container[] = [];
  const withheld: { name: string; message: string }[] = [];
  for (const [i, container] of (pod.spec.ephemeralContainers ?? []).entries()) {
    try {
      ephemeral.push(carryContainer(ephemeralContainerTable, container, `spec.ephemeralContainers[${i}]`, work));
    } catch (error) {
      if (!(error instanceof Refused)) throw error;
      withheld.push({ name: container.name, message: error.message });
    }
  }
  return { ephemeral, withheld };
}

function refuseMoreThanLeased(pod: Pod, view: SelfView): void {
  for (const [resource, asked] of Object.entries(podRequests(pod))) {
    const given = parseQuantity(view.capacity[resource] ?? 0);
    if (asked > given)
      throw new Refused(
        'LeaseExceeded',
        `the pod asks for ${formatQuantity(asked)} ${resource}, the lease has ${formatQuantity(given)}${
          resource === gpuResource ? ': lease more GPUs, or ask for fewer' : ''
        }`,
      );
  }
}
