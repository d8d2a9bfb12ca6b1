"""From rewards to a trained encoder.

job               what a training is told and what it reports
group_survey      which labelled groups are taken, and in which order, from some bytes a group
group_rows        a labelled group as a row to train on
row_files         rows as memory-mapped files, and how they are numbered
training_rows     batches of rows
split             which groups are held out
batch_plan        which rows of which tasks each step trains
estimate          the work and memory of a training, before it starts
loop              the training loop: step, measure, save, export
finite            numbers that are not finite, which end a training
learners          what the loop trains: the encoder, or the cross-encoder of the teacher `reranker`
cross_encoder     query and candidate in one text, to one score
control           groups whose rewards say nothing, for a second training
objective         from the vectors of a batch to a loss for each query
losses            the losses as pure functions of scores
token_batches     the rows of a step, padded in batches
step_room         how many tokens of a step fit into memory at once
gradient          the gradient of a batch of any size (GradCache)
schedule          learning rates by step and by task
deepspeed_engine  forward, backward and update, with DeepSpeed
distributed       gathers and sums over the workers
lora              low-rank additions to the weights
checkpoint        checkpoints that are whole or not there
validation        the held-out groups, the best weights, early stopping
weight_guard      how far the exported weights go from the base's to the trained ones
ranking_quality   how well scores rank a group
followed          a training whose steps are kept and told to its trackers
trackers          TensorBoard, MLflow, Weights & Biases
model_card        README.md of the exported folder
training_report   the report of a training
"""
