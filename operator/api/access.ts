/**
 * GpuAccess: which namespaces may use which leased node. One object for the whole cluster, kept by the operator, so that
 * the API server finds a node's answer by its name, however many there are; see `policies.ts`. What it says follows from
 * the GpuLeases; nobody edits it.
 */
import { z } from 'zod';
import type { Kind, KindDefinition } from './schema.ts';

/** The one object of this kind. */
export const accessName = 'leased-nodes';

const namespaceName = z.string().min(1).max(63);

export const accessSpec = z.object({
  nodes: z
    .record(
      z.string().max(63),
      z.object({
        lease: z.string().max(317).describe('Namespace and name of the GpuLease, with a slash between.'),
        namespaces: z.array(namespaceName).max(64).describe('Namespaces whose pods may run there; "*" means all.'),
        ending: z.boolean().optional().describe('The lease ends: no more pods are bound.'),
      }),
    )
    .default({})
    .describe('By name of the node.'),
  untainted: z
    .array(z.string().max(63))
    .max(1024)
    .default([])
    .describe('Nodes among them that no taint of ours guards.'),
});

export type AccessSpec = z.infer<typeof accessSpec>;
export type GpuAccess = Kind<AccessSpec, Record<string, never>>;

export const gpuAccess: KindDefinition = {
  kind: 'GpuAccess',
  plural: 'gpuaccesses',
  scope: 'Cluster',
  shortNames: ['ga'],
  description:
    'Which namespaces may use which leased node: one object, kept by the operator from spec.access of the GpuLeases, in which the API server looks before a pod is bound. Not edited by people.',
  spec: accessSpec,
  status: z.object({}),
  columns: [{ name: 'Age', type: 'date', path: '.metadata.creationTimestamp' }],
};
