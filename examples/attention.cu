// Decodes over a paged cache of float32: a thread has a query and a head, and sees one key after another. For CUDA, HIP and CPUs.
#include <math.h>
#if defined(__HIPCC__)
#include <hip/hip_runtime.h>
#endif
#if defined(__CUDACC__) || defined(__HIPCC__)
#define ON_GPU __device__
#else
#define ON_GPU
#endif
struct Call {
  float *out; const float *q, *k, *v; const int *table, *lengths; float scale;
  long requests, heads, dims, slots, kv_heads, block, slot, head, row, q_row, out_row;
};
ON_GPU void attend(const Call &c, long r, long h) {
  float *out = c.out + r * c.out_row + h * c.dims, largest = -INFINITY, total = 0;
  const float *q = c.q + r * c.q_row + h * c.dims;
  for (long d = 0; d < c.dims; ++d) out[d] = 0;
  for (int key = 0; key < c.lengths[r]; ++key) {
    long at = c.table[r * c.row + key / c.slots] * c.block + key % c.slots * c.slot + h / (c.heads / c.kv_heads) * c.head;
    float logit = 0;
    for (long d = 0; d < c.dims; ++d) logit += q[d] * c.k[at + d];
    logit *= c.scale;
    float larger = fmaxf(largest, logit), decay = expf(largest - larger), weight = expf(logit - larger);
    for (long d = 0; d < c.dims; ++d) out[d] = out[d] * decay + weight * c.v[at + d];
    total = total * decay + weight;
    largest = larger;
  }
  for (long d = 0; d < c.dims; ++d) out[d] /= total;
}
#if defined(__CUDACC__) || defined(__HIPCC__)
__global__ void decode(Call c) { for (long h = threadIdx.x; h < c.heads; h += blockDim.x) attend(c, blockIdx.x, h); }
#endif
extern "C" void my_attention(float *out, float *q, float *k, float *v, int *table, int *lengths, float scale, long requests,
    long heads, long dims, long slots, long kv_heads, long block, long slot, long head, long row, long q_row, long out_row,
    void *stream) {
  Call c{out, q, k, v, table, lengths, scale, requests, heads, dims, slots, kv_heads, block, slot, head, row, q_row, out_row};
#if defined(__CUDACC__)
  decode<<<requests, 256, 0, (cudaStream_t)stream>>>(c);
#elif defined(__HIPCC__)
  decode<<<requests, 256, 0, (hipStream_t)stream>>>(c);
#else
  for (long r = 0; r < requests; ++r) for (long h = 0; h < heads; ++h) attend(c, r, h);
#endif
}
