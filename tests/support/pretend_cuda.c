/* One CUDA device that does nothing: driver and runtime functions that PyTorch calls before it computes anything. */
int cudaGetDeviceCount(int *n) { *n = 1; return 0; }
int cudaGetDevice(int *d) { *d = 0; return 0; }
int cudaSetDevice(int d) { return 0; }
int cudaDeviceGetStreamPriorityRange(int *low, int *high) { *low = 0; *high = -1; return 0; }
int cudaDeviceSynchronize(void) { return 0; }
int cudaStreamCreateWithPriority(void **s, unsigned f, int p) { *s = (void *)1; return 0; }
int cudaStreamQuery(void *s) { return 0; }
int cudaStreamSynchronize(void *s) { return 0; }
int cudaStreamWaitEvent(void *s, void *e, unsigned f) { return 0; }
int cudaStreamIsCapturing(void *s, int *c) { *c = 0; return 0; }
int cudaEventCreateWithFlags(void **e, unsigned f) { *e = (void *)1; return 0; }
int cudaEventRecord(void *e, void *s) { return 0; }
int cudaEventRecordWithFlags(void *e, void *s, unsigned f) { return 0; }
int cudaStreamGetCaptureInfo(void *s, int *status) { *status = 0; return 0; }
int cudaEventQuery(void *e) { return 0; }
int cudaEventDestroy(void *e) { return 0; }
int cudaEventSynchronize(void *e) { return 0; }
int cudaGetLastError(void) { return 0; }
int cudaPeekAtLastError(void) { return 0; }
int cuDevicePrimaryCtxGetState(int d, unsigned *f, int *a) { *f = 0; *a = 0; return 0; }
