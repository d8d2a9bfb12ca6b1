"""Files and object stores.

arrow_files    Arrow files of known columns; columns that could run code are refused
durable        files that survive a kill and a power cut; locks between processes
json_file      JSON files that appear as a whole
store          what a store of objects is: `put_if_absent`
folder_store   a folder as a store
bucket_store   S3, Google Cloud Storage and Azure as stores
connect        the store at a path, tried before use
numbered       numbered objects: the highest number counts
position       for how long a process relies on a number, and a number is kept
commit_log     a log of commits that any process appends to, its snapshots, and its cleaning
log_writer     one process's appending, which gives way to others
revisions      a document that any process replaces
object_store   paths in S3, Google Cloud Storage and Azure
filesystems    pyarrow's connections to them
lease          who may write to a run: a protocol over numbered objects
holding        the lease on a run while a job works there: a second job is refused
folders        folders here and in object stores: made as a whole, removed
node_cache     what this machine keeps of object stores, within a bound
line_log       lines that one process adds while others read them
fetched        files and folders in an object store, as files of this machine
"""
