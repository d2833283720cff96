/**
 * Variables, annotations and mounts by which a container asks the NVIDIA runtime for devices, past Kubernetes' count.
 * On common runtimes one of these alone gives an unprivileged container every card of the node.
 * https://github.com/NVIDIA/nvidia-container-toolkit, README and internal/config/image
 */
export const visibleDevices = 'NVIDIA_VISIBLE_DEVICES';

export const deviceVariables: readonly string[] = [
  visibleDevices,
  'NVIDIA_MIG_CONFIG_DEVICES',
  'NVIDIA_MIG_MONITOR_DEVICES',
  'NVIDIA_IMEX_CHANNELS',
  'NVIDIA_DRIVER_CAPABILITIES',
  'NVIDIA_GDS',
  'NVIDIA_MOFED',
  'NVIDIA_GDRCOPY',
  'NVIDIA_NVSWITCH',
  'NVIDIA_DISABLE_REQUIRE',
  // Read by runtimes that were told to take devices from a variable of another name.
  'DOCKER_RESOURCE_NVIDIA_VISIBLE_DEVICES',
  'SWARM_RESOURCE',
];

export const isDeviceVariable = (name: string): boolean => deviceVariables.includes(name);

/** A prefix with which a key of a ConfigMap or Secret could become such a variable. */
export const makesDeviceVariable = (prefix: string): boolean =>
  prefix !== '' && deviceVariables.some((name) => name.startsWith(prefix));

/** Parts of the driver that a container with a GPU may ask for; they open no further device. */
export const harmlessCapabilities: readonly string[] = ['compute', 'utility', 'video', 'graphics', 'ngx', 'compat32'];

/** A value that widens nothing. */
export const isHarmlessValue = (name: string, value: string): boolean => {
  if (name === visibleDevices) return value === 'void';
  if (name !== 'NVIDIA_DRIVER_CAPABILITIES') return false;
  return value.split(',').every((one) => harmlessCapabilities.includes(one));
};

/** Of the Container Device Interface, and NVIDIA's own: https://github.com/cncf-tags/container-device-interface */
export const isDeviceAnnotation = (key: string): boolean => /(^|\.)cdi\.k8s\.io(\/|$)/.test(key);

/** Where a mount means "give me this device", whatever is mounted. */
export function isDeviceListPath(mountPath: string): boolean {
  const parts: string[] = [];
  for (const part of mountPath.split('/')) {
    if (part === '..') parts.pop();
    else if (part !== '' && part !== '.') parts.push(part);
  }
  const path = `/${parts.join('/')}/`;
  return /^\/(var\/)?run\/nvidia-container-devices\//.test(path);
}
