/** Security contexts: what Pod Security "baseline" lets through, and no profile of the host. */
import { baselineCapabilities, safeSysctls } from '../pod-security.ts';
import { carried, each, object, only, refused, type Work } from './carrying.ts';
import { type FieldRule, type ObjectTable, Refused } from './field-table.ts';

const capabilities: ObjectTable<Work> = {
  type: 'Capabilities',
  fields: {
    add: {
      ...carried('those of Pod Security "baseline"; others are refused'),
      carry(value, { path }) {
        const added = value as string[];
        const more = added.find((name) => !baselineCapabilities.includes(name.replace(/^CAP_/, '')));
        if (more === undefined) return added.length === 0 ? undefined : added;
        const help = more === 'SYS_PTRACE' ? ': for kubectl debug, use --profile=baseline' : '';
        throw new Refused('PrivilegedRefused', `${path}: ${more} is not given on leased nodes${help}`);
      },
    },
    drop: carried(),
  },
};

const profile = (type: 'SeccompProfile' | 'AppArmorProfile'): ObjectTable<Work> => ({
  type,
  fields: {
    type: only(
      ['RuntimeDefault'],
      'PrivilegedRefused',
      'only RuntimeDefault is given: profiles of the host, and none, are not',
    ),
    localhostProfile: refused('PrivilegedRefused', 'profiles of the host are not given on leased nodes'),
  },
});
const seccomp = profile('SeccompProfile');
const appArmor = profile('AppArmorProfile');

const seLinux: ObjectTable<Work> = {
  type: 'SELinuxOptions',
  fields: {
    level: carried(),
    type: only(
      ['', 'container_t', 'container_init_t', 'container_kvm_t', 'container_engine_t'],
      'PrivilegedRefused',
      'only types for containers are given',
    ),
    user: refused('PrivilegedRefused', 'users of SELinux are not given on leased nodes'),
    role: refused('PrivilegedRefused', 'roles of SELinux are not given on leased nodes'),
  },
};

/** What is spelled out as empty says nothing. */
const settled = (rule: FieldRule<Work>): FieldRule<Work> => ({
  ...rule,
  carry: (value, place) => (Object.keys(value as object).length === 0 ? undefined : rule.carry(value, place)),
});

const windows = settled(refused('FieldNotSupported', 'leased nodes run Linux'));

export const containerSecurity: ObjectTable<Work> = {
  type: 'SecurityContext',
  fields: {
    allowPrivilegeEscalation: carried(),
    appArmorProfile: settled(object(() => appArmor)),
    capabilities: object(() => capabilities),
    privileged: refused('PrivilegedRefused', 'leased nodes run no privileged containers'),
    procMount: only(['Default'], 'PrivilegedRefused', 'only Default is given'),
    readOnlyRootFilesystem: carried(),
    runAsGroup: carried(),
    runAsNonRoot: carried(),
    runAsUser: carried(),
    seLinuxOptions: object(() => seLinux),
    seccompProfile: settled(object(() => seccomp)),
    windowsOptions: windows,
  },
};

const sysctl: ObjectTable<Work> = {
  type: 'Sysctl',
  fields: {
    name: only(safeSysctls, 'PrivilegedRefused', 'only the sysctls that Kubernetes calls safe are set'),
    value: carried(),
  },
};

export const podSecurity: ObjectTable<Work> = {
  type: 'PodSecurityContext',
  fields: {
    appArmorProfile: settled(object(() => appArmor)),
    fsGroup: carried(),
    fsGroupChangePolicy: carried(),
    runAsGroup: carried(),
    runAsNonRoot: carried(),
    runAsUser: carried(),
    seLinuxChangePolicy: carried(),
    seLinuxOptions: object(() => seLinux),
    seccompProfile: settled(object(() => seccomp)),
    supplementalGroups: carried(),
    supplementalGroupsPolicy: carried(),
    sysctls: each(() => sysctl),
    windowsOptions: windows,
  },
};
