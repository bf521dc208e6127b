/* The MXNet C predict API, implemented by TrIMS (libtrims_predict).
 *
 * Names, types and meanings are those of MXNet 1.2's header of this name, with
 * MXPredInit added as in the 2019 TrIMS, so that a program written for it
 * compiles and runs unchanged. What the environment decides:
 *
 *   UPR_ENABLED              true (default): weights are leased from the TrIMS
 *                            daemon and shared with every process that uses the
 *                            model; param_bytes is ignored. false: param_bytes
 *                            holds the weights; if it is NULL, this process loads
 *                            them from UPR_BASE_DIR.
 *   UPR_MODEL_NAME           The model to lease or load (default bvlc_alexnet_1.0).
 *   UPR_SHARING_GRANULARITY  model (default), slab, layer or auto.
 *   UPR_BASE_DIR             Directory of model directories, for UPR_ENABLED=false
 *                            (default $HOME/carml/data/mxnet/).
 *   TRIMS_PREDICT_ALLOW_MISSING=1  A parameter that the weights lack is zero and
 *                            not an error.
 *   TRIMS_PREDICT_PACK=1     Private, faster copies of convolution weights.
 *   OMP_NUM_THREADS          Threads of a prediction (default: all cores).
 *
 * Every function returns 0 on success and -1 on failure, unless said otherwise;
 * MXGetLastError then says why, in the same thread. A failed call leaves its
 * outputs untouched. NULL pointers, freed handles and numbers out of range are
 * errors, not crashes. One handle is for one thread at a time; different handles
 * are independent. The functions must not be used in a child that was forked
 * after a prediction.
 *
 * Where this differs from MXNet: MXPredSetInput refuses to change a weight;
 * missing parameters are an error; MXPredForward has computed when it returns; a
 * handle that was reshaped stays usable; what MXPredGetOutputShape and
 * MXNDListGet return stays valid until the next call of the same function with
 * the same handle; arrays of any type are read as float32.
 */
#ifndef MXNET_C_PREDICT_API_H_
#define MXNET_C_PREDICT_API_H_

#ifndef MXNET_DLL
#if defined(__GNUC__)
#define MXNET_DLL __attribute__((visibility("default")))
#else
#define MXNET_DLL
#endif
#endif

#ifdef __cplusplus
extern "C" {
#endif

typedef unsigned int mx_uint;
typedef float mx_float;
typedef void* PredictorHandle;
typedef void* NDListHandle;

/* The last failure's message in this thread, "" if there was none. Valid until
 * the next failing call of this thread; a success does not clear it. */
MXNET_DLL const char* MXGetLastError(void);

/* Prepares the process: what a first MXPredCreate would otherwise do. Optional. */
MXNET_DLL int MXPredInit(void);

/* Creates a predictor.
 *   symbol_json_str     The network, MXNet symbol JSON, NUL-terminated.
 *   param_bytes         The weights, an MXNet parameter list or a safetensors file;
 *   param_size            copied, so it may be freed afterwards. See UPR_ENABLED.
 *   dev_type, dev_id    1: CPU. 2 (GPU) is refused: this build has no GPU backend.
 *   num_input_nodes     Number of inputs: input_keys[i] has the dimensions
 *   input_keys            input_shape_data[input_shape_indptr[i]] up to and without
 *   input_shape_indptr    input_shape_data[input_shape_indptr[i + 1]]. Keys that the
 *   input_shape_data      network does not have are ignored.
 *   out                 The predictor, to be freed with MXPredFree. */
MXNET_DLL int MXPredCreate(const char* symbol_json_str, const void* param_bytes, int param_size,
                           int dev_type, int dev_id, mx_uint num_input_nodes,
                           const char** input_keys, const mx_uint* input_shape_indptr,
                           const mx_uint* input_shape_data, PredictorHandle* out);

/* The same for the outputs of the inner nodes that `output_keys` names. */
MXNET_DLL int MXPredCreatePartialOut(const char* symbol_json_str, const void* param_bytes,
                                     int param_size, int dev_type, int dev_id,
                                     mx_uint num_input_nodes, const char** input_keys,
                                     const mx_uint* input_shape_indptr,
                                     const mx_uint* input_shape_data, mx_uint num_output_nodes,
                                     const char** output_keys, PredictorHandle* out);

/* A new predictor with other input shapes and the same weights; inputs that are
 * not named keep theirs. Both must be freed. */
MXNET_DLL int MXPredReshape(mx_uint num_input_nodes, const char** input_keys,
                            const mx_uint* input_shape_indptr, const mx_uint* input_shape_data,
                            PredictorHandle handle, PredictorHandle* out);

/* The shape of output `index`. */
MXNET_DLL int MXPredGetOutputShape(PredictorHandle handle, mx_uint index, mx_uint** shape_data,
                                   mx_uint* shape_ndim);

/* Copies `size` elements into the input `key`. */
MXNET_DLL int MXPredSetInput(PredictorHandle handle, const char* key, const mx_float* data,
                             mx_uint size);

MXNET_DLL int MXPredForward(PredictorHandle handle);

/* Runs step `step` of the network: call with 0, 1, … until *step_left is 0. */
MXNET_DLL int MXPredPartialForward(PredictorHandle handle, int step, int* step_left);

/* Copies output `index`, which has `size` elements, to `data`. */
MXNET_DLL int MXPredGetOutput(PredictorHandle handle, mx_uint index, mx_float* data, mx_uint size);

/* Frees a predictor and, with its last user, the lease on the weights. */
MXNET_DLL int MXPredFree(PredictorHandle handle);

/* Reads an MXNet array list, such as a mean image. To be freed with MXNDListFree. */
MXNET_DLL int MXNDListCreate(const char* nd_file_bytes, int nd_file_size, NDListHandle* out,
                             mx_uint* out_length);

/* Array `index` of a list: its name ("" in a list without names), elements and
 * shape, owned by the list. */
MXNET_DLL int MXNDListGet(NDListHandle handle, mx_uint index, const char** out_key,
                          const mx_float** out_data, const mx_uint** out_shape, mx_uint* out_ndim);

MXNET_DLL int MXNDListFree(NDListHandle handle);

#ifdef __cplusplus
} /* extern "C" */
#endif

#endif /* MXNET_C_PREDICT_API_H_ */
