"""The public functions on submissions: their format, how they are written, and whether they are valid.

The functions are in separate modules. The format of a submission and of its rows is in predictions/format/, because
published metrics take the same rows. Writing (write_file.py, mask_images.py) and checking (examine.py) are in this
room.
"""

from pipeline.encode.examine import examine as examine
from pipeline.encode.examine import faults_of as faults_of
from pipeline.encode.examine import file_note as file_note
from pipeline.encode.write_file import write as write
from pipeline.encode.write_file import write_constant as write_constant
from pipeline.predictions.format.expected import Expected as Expected
from pipeline.predictions.format.expected import Key as Key
from pipeline.predictions.format.expected import Texts as Texts
from pipeline.predictions.format.expected import expected as expected
from pipeline.predictions.format.expected import expected_by_name as expected_by_name
from pipeline.predictions.format.expected import expected_of as expected_of
from pipeline.predictions.format.expected import format_of as format_of
from pipeline.predictions.format.expected import usual_class as usual_class
from pipeline.predictions.format.texts import Scores as Scores
from pipeline.predictions.format.texts import cells_of as cells_of
from pipeline.predictions.format.texts import instances_of as instances_of
from pipeline.predictions.format.texts import scores_of as scores_of
from pipeline.predictions.format.texts import texts_of as texts_of
