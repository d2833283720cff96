/** Keeps the consumer's Services in a tenant's namespace, and points them at the tunnel that stands for them now. */
import type { ServicesAnswer, ServicesRequest } from '../../api/gateway.ts';
import { annotations, managedBy, labels as ownLabels } from '../../api/labels.ts';
import type { LeaseRecord } from '../../core/allocation/record.ts';
import { tenantNamespace } from '../../core/allocation/record.ts';
import { Refusal } from '../../core/allocation/refusal.ts';
import { tenantLimits } from '../../core/allocation/rights.ts';
import { leaseIdLabel, type TenantOptions, tenantObjects } from '../../core/allocation/tenant.ts';
import {
  type TenantService,
  type TunnelPlace,
  tenantServiceObject,
  tenantServiceOf,
  tunnelSlice,
  tunnelSliceName,
  withoutTunnel,
} from '../../core/allocation/tenant-services.ts';
import type { EndpointSlice, Family, Service } from '../../core/node/service.ts';
import { type Clock, sleep, systemClock } from '../../engine/clock.ts';
import { isApiError, isConflict, isNotFound } from '../../engine/errors.ts';
import { type Cluster, type KubeObject, resources } from '../../engine/types.ts';
import { fieldManager } from './tenants.ts';

/** A raised quota is counted by a controller, a moment later. */
const quotaPatienceSeconds = 5;
const quotaRetryMs = 100;

export interface TenantServices {
  /** Makes these Services, and no others; answers with their addresses. */
  put(record: LeaseRecord, request: ServicesRequest, signal?: AbortSignal): Promise<ServicesAnswer>;
  list(record: LeaseRecord, signal?: AbortSignal): Promise<readonly TenantService[]>;
  /** Their connections go to this tunnel from now on. */
  point(record: LeaseRecord, place: TunnelPlace, signal?: AbortSignal): Promise<void>;
  /** The tunnel is gone. What a later one has pointed at itself stays. */
  unpoint(record: LeaseRecord, holder: string, signal?: AbortSignal): Promise<void>;
}

type StoredService = Service & KubeObject;
type StoredSlice = EndpointSlice & KubeObject;

export function createTenantServices(options: {
  readonly cluster: Cluster;
  readonly tenant: TenantOptions;
  /** Of the tunnels' address: endpoints of another family would not be used. */
  readonly family: Family;
  readonly clock?: Clock;
}): TenantServices {
  const { cluster, tenant, family } = options;
  const clock = options.clock ?? systemClock;
  const ours = `${ownLabels.managedBy}=${managedBy},${ownLabels.tenant}=true`;

  async function stored(record: LeaseRecord, signal?: AbortSignal): Promise<StoredService[]> {
    const namespace = tenantNamespace(record.leaseId);
    return (await cluster.list<StoredService>(resources.services, { namespace, labelSelector: ours }, signal)).items;
  }

  /** No more of the quota than this: a tenant from before it was split has all that it may have in there. */
  async function allowServices(record: LeaseRecord, count: number, signal?: AbortSignal): Promise<void> {
    const key = { namespace: tenantNamespace(record.leaseId), name: tenantLimits };
    const patch = { spec: { hard: { services: String(count) } } };
    await cluster.patch(resources.resourceQuotas, key, patch, { type: 'merge' }, signal);
  }

  async function allowTraffic(
    record: LeaseRecord,
    tunnelPorts: readonly number[],
    signal?: AbortSignal,
  ): Promise<void> {
    for (const { resource, object } of tenantObjects(record, tenant, tunnelPorts))
      if (resource === 'networkPolicies')
        await cluster.apply<KubeObject>(resources[resource], object as KubeObject, { fieldManager }, signal);
  }

  async function make(object: Service, signal?: AbortSignal): Promise<StoredService> {
    const until = clock.monotonicMs() + quotaPatienceSeconds * 1000;
    for (;;) {
      try {
        return await cluster.apply<StoredService>(
          resources.services,
          object as StoredService,
          { fieldManager },
          signal,
        );
      } catch (error) {
        const counting = isApiError(error, 'Forbidden') && error.message.includes('exceeded quota');
        if (!counting) throw error;
        if (clock.monotonicMs() > until)
          throw new Refusal(503, 'the namespace’s quota has not been raised yet: try again', { retryAfterSeconds: 2 });
        await sleep(clock, quotaRetryMs, signal);
      }
    }
  }

  return {
    async put(record, request, signal) {
      const namespace = tenantNamespace(record.leaseId);
      const leaseId = leaseIdLabel(record.leaseId);
      const objects = request.services.map((wanted) => tenantServiceObject(wanted, { namespace, leaseId, family }));
      if (new Set(objects.map(({ metadata }) => metadata.name)).size < objects.length)
        throw new Refusal(400, 'services: a Service is named twice');
      // Those that are no longer wanted go first: there may be no room beside them.
      for (const { metadata } of await stored(record, signal))
        if (!objects.some((one) => one.metadata.name === metadata.name))
          await cluster.delete(resources.services, { namespace, name: metadata.name }, { uid: metadata.uid }, signal);
      await allowServices(record, objects.length, signal);
      const services: ServicesAnswer['services'] = [];
      for (const [index, object] of objects.entries()) {
        const made = await make(object, signal);
        const wanted = request.services[index]!;
        services.push({ namespace: wanted.namespace, name: wanted.name, address: made.spec.clusterIP ?? '' });
      }
      return { services };
    },

    async list(record, signal) {
      return (await stored(record, signal)).flatMap((one) => tenantServiceOf(one) ?? []);
    },

    async point(record, place, signal) {
      const leaseId = leaseIdLabel(record.leaseId);
      const objects = await stored(record, signal);
      // Before the endpoints: a pod that connects the moment they are there must not be turned away.
      const tunnelPorts = [...new Set(place.ports.values())].sort((a, b) => a - b);
      await allowTraffic(record, tunnelPorts, signal);
      for (const object of objects) {
        const of = tenantServiceOf(object);
        if (!of) continue;
        const slice = tunnelSlice(object, of, place, leaseId);
        const key = { namespace: object.metadata.namespace, name: tunnelSliceName(object) };
        if (slice)
          await cluster.apply<StoredSlice>(resources.endpointSlices, slice as StoredSlice, { fieldManager }, signal);
        else await cluster.delete(resources.endpointSlices, key, {}, signal);
      }
    },

    async unpoint(record, holder, signal) {
      for (const object of await stored(record, signal)) {
        const key = { namespace: object.metadata.namespace, name: tunnelSliceName(object) };
        const slice = await cluster.get<StoredSlice>(resources.endpointSlices, key, signal);
        if (!slice || slice.metadata.annotations?.[annotations.tunnel] !== holder) continue;
        try {
          // With the version that was read: another replica's tunnel may have taken it over since.
          await cluster.replace<StoredSlice>(
            resources.endpointSlices,
            withoutTunnel(slice) as StoredSlice,
            undefined,
            signal,
          );
        } catch (error) {
          if (!isConflict(error) && !isNotFound(error)) throw error;
        }
      }
    },
  };
}
