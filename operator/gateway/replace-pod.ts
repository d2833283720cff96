/**
 * A running pod sent anew, as a whole: it is admitted anew, and each part of it that may change is written in its own way.
 * Whatever becomes of its resources, everything else is carried out first; that they were refused is told then.
 */
import type { IncomingMessage } from 'node:http';
import type { Problem } from '../api/gateway.ts';
import type { AdmittedPod } from '../core/allocation/admit-pod.ts';
import { Refusal } from '../core/allocation/refusal.ts';
import { type PodPart, podParts, replacePart, withResourcesOf } from '../core/allocation/replace-pod.ts';

/** A pod as the API server keeps it: etcd takes 1.5 MiB by default. */
const maxObjectBytes = 4 * 1024 * 1024;

type Json = Record<string, unknown>;

export interface PodAccess {
  /** A request about the pod, or one of its subresources, as the tenant's account. */
  send(method: 'GET' | 'PUT', subresource: string | undefined, body?: Json): Promise<IncomingMessage>;
  /** Throws Refusal. */
  admit(body: unknown): AdmittedPod;
  read(response: IncomingMessage, maxBytes: number): Promise<string>;
  problemOf(response: IncomingMessage, method: 'GET' | 'PUT'): Promise<Problem>;
}

export async function replaceRunningPod(
  name: string,
  body: unknown,
  access: PodAccess,
): Promise<{ readonly pod: Json } | { readonly problem: Problem }> {
  if ((body as { metadata?: { name?: unknown } } | null)?.metadata?.name !== name)
    throw new Refusal(400, 'metadata.name is not the name in the path');
  const current = await access.send('GET', undefined);
  if (current.statusCode !== 200) return { problem: await access.problemOf(current, 'GET') };
  let there = JSON.parse(await access.read(current, maxObjectBytes)) as Json;

  const { admitted, refusal } = admitAnew(body, there, access);
  const { resourceVersion } = admitted.metadata;
  if (resourceVersion !== undefined)
    there = { ...there, metadata: { ...(there.metadata as Json | undefined), resourceVersion } };

  for (const part of podParts) {
    const wanted = replacePart(part, there, admitted);
    if (wanted === undefined) continue;
    const answer = await access.send('PUT', part === 'pod' ? undefined : part, wanted);
    const status = answer.statusCode ?? 502;
    if (status < 200 || status >= 300) return { problem: ofPart(part, status, await access.problemOf(answer, 'PUT')) };
    there = JSON.parse(await access.read(answer, maxObjectBytes)) as Json;
  }
  if (refusal !== undefined) throw new Refusal('ResizeRefused', refusal.message, { errors: refusal.errors ?? [] });
  return { pod: there };
}

/** Admitted as it is, or with the resources that it has, where those alone are in the way. */
function admitAnew(
  body: unknown,
  current: Json,
  access: PodAccess,
): { readonly admitted: AdmittedPod; readonly refusal?: Refusal } {
  try {
    return { admitted: access.admit(body) };
  } catch (error) {
    if (!(error instanceof Refusal) || !isAboutResources(error)) throw error;
    const unresized = withResourcesOf(current, body);
    if (unresized === undefined) throw error;
    return { admitted: access.admit(unresized), refusal: error };
  }
}

const isAboutResources = ({ reason, errors = [] }: Refusal): boolean =>
  reason === 'PodRefused' &&
  errors.length > 0 &&
  errors.every(({ field }) => /^spec\.((init)?[cC]ontainers\[\d+\]\.)?resources\./.test(field));

function ofPart(part: PodPart, status: number, problem: Problem): Problem {
  // A full quota may have room later, and a conflict is over at the next try.
  if (part !== 'resize' || status === 409 || status >= 500 || problem.reason === 'CapacityExhausted') return problem;
  if (status === 401 || status === 429) return problem;
  const detail =
    status === 404 || status === 405
      ? 'the provider’s Kubernetes cannot resize a running pod: that needs version 1.33 or later'
      : problem.detail;
  return { ...problem, status: 422, type: 'gpulease:ResizeRefused', reason: 'ResizeRefused', detail };
}
