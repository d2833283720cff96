import { describe, expect, test } from 'vitest';
import { fitsPartition, modelOfProduct, partitionPattern, readProduct } from '../../../operator/api/models.ts';

describe('product labels of feature discovery', () => {
  test.each([
    ['NVIDIA-A100-SXM4-40GB', { product: 'NVIDIA-A100-SXM4-40GB', shared: false }, 'None'],
    ['NVIDIA-A100-SXM4-40GB-SHARED', { product: 'NVIDIA-A100-SXM4-40GB', shared: true }, 'TimeSliced'],
    [
      'NVIDIA-A100-SXM4-40GB-MIG-1g.5gb',
      { product: 'NVIDIA-A100-SXM4-40GB', mig: '1g.5gb', shared: false },
      'MIG-1g.5gb',
    ],
    [
      'NVIDIA-A100-SXM4-40GB-MIG-1g.5gb.me',
      { product: 'NVIDIA-A100-SXM4-40GB', mig: '1g.5gb.me', shared: false },
      'MIG-1g.5gb.me',
    ],
  ])('%s', (label, read, partition) => {
    expect(readProduct(label)).toEqual(read);
    expect(modelOfProduct(label)).toBe('A100-SXM');
    expect(partitionPattern.test(partition)).toBe(true);
    for (const one of ['None', 'TimeSliced', 'MIG-1g.5gb', 'MIG-1g.5gb.me', 'MIG-2g.10gb'])
      expect(fitsPartition(label, one), one).toBe(one === partition);
  });

  test.each([
    'NVIDIA-A100-SXM4-40GB-MIG-INVALID',
    'NVIDIA-A100-SXM4-40GB-MIG-1g.5gb-SHARED',
  ])('%s fits nothing that can be leased', (label) => {
    for (const one of ['None', 'TimeSliced', 'MPS', 'MIG-1g.5gb']) expect(fitsPartition(label, one), one).toBe(false);
  });

  test.each([
    'MIG-INVALID',
    'MIG-',
    'MIG-1g',
    'SHARED',
    '',
    'MIG-1g.5gb+me',
    'MIG-1g.5gb.x.y.z',
  ])('"%s" is no partition', (partition) => expect(partitionPattern.test(partition)).toBe(false));
});
