// Copies many pieces between a mapped arena and device memory, in either direction.
//
// `copy.ptx` beside this file is what it compiles to; the driver makes machine code of that when a
// copier is opened, so that a worker's machine needs the driver and no compiler. Made again by
//     nvcc -ptx -arch=compute_70 -o copy.ptx copy.cu
// or the same options given to NVRTC. PTX 8.0 is understood by every driver from CUDA 12.0 on.

struct Piece {
    unsigned long long source;
    unsigned long long target;
    unsigned long long length;
};

// Pieces go to thread blocks in turn. The pieces themselves lie in host memory: each block asks for
// its next one before it copies the one at hand, as an answer over PCIe takes a microsecond or two.
extern "C" __global__ void __launch_bounds__(256)
copy_pieces(const Piece *__restrict__ pieces, unsigned int count) {
    unsigned int at = blockIdx.x;
    if (at >= count) return;
    Piece piece = pieces[at];
    for (;;) {
        const unsigned int next = at + gridDim.x;
        Piece following = {0, 0, 0};
        if (next < count) following = pieces[next];

        if (((piece.source | piece.target | piece.length) & 15) == 0) {
            const uint4 *source = reinterpret_cast<const uint4 *>(piece.source);
            uint4 *target = reinterpret_cast<uint4 *>(piece.target);
            const unsigned int vectors = static_cast<unsigned int>(piece.length / 16);
            const unsigned int step = blockDim.x;
            // Eight independent loads in flight for each thread before the first store.
            for (unsigned int i = threadIdx.x; i < vectors; i += 8 * step) {
                uint4 held[8];
#pragma unroll
                for (unsigned int k = 0; k < 8; k++)
                    if (i + k * step < vectors) held[k] = __ldcs(source + i + k * step);
#pragma unroll
                for (unsigned int k = 0; k < 8; k++)
                    if (i + k * step < vectors) __stcs(target + i + k * step, held[k]);
            }
        } else {
            const unsigned char *source = reinterpret_cast<const unsigned char *>(piece.source);
            unsigned char *target = reinterpret_cast<unsigned char *>(piece.target);
            for (unsigned long long i = threadIdx.x; i < piece.length; i += blockDim.x)
                target[i] = source[i];
        }
        if (next >= count) return;
        at = next;
        piece = following;
    }
}
